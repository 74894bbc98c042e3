// Where the page is, in the URL's fragment: `#/o/conversation/c1?v=43`.
import { useSyncExternalStore } from "react";

export interface Route {
  /** Such as ["o", "conversation", "c1"]. */
  readonly path: readonly string[];
  readonly query: URLSearchParams;
}

let [text, parsed] = ["", parse("")];

function parse(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split("?");
  return { path: path.split("/").filter(Boolean).map(decoded), query: new URLSearchParams(query) };
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

export function route(): Route {
  if (text !== location.hash) [text, parsed] = [location.hash, parse(location.hash)];
  return parsed;
}

export function useRoute(): Route {
  return useSyncExternalStore(subscribe, route);
}

function subscribe(changed: () => void): () => void {
  addEventListener("hashchange", changed);
  return () => removeEventListener("hashchange", changed);
}

/** to is the link to a page. */
export function to(...path: string[]): string {
  return `#/${path.map(encodeURIComponent).join("/")}`;
}

export const object = (kind: string, id: string): string => to("o", kind, id);
/** The page that shows most of an object. */
export const best = (kind: string, id: string): string =>
  kind === "conversation"
    ? to("c", id)
    : kind === "api"
      ? to("apis", id)
      : kind === "project"
        ? to("projects", id)
        : object(kind, id);

export function go(link: string): void {
  location.hash = link;
}

/** replace changes the query without a new step in the browser's history. */
export function replace(query: Record<string, string | undefined>): void {
  const { path, query: was } = route();
  const now = new URLSearchParams(was);
  for (const [k, v] of Object.entries(query)) v === undefined || v === "" ? now.delete(k) : now.set(k, v);
  const text = now.toString();
  history.replaceState(null, "", to(...path) + (text ? `?${text}` : ""));
  dispatchEvent(new HashChangeEvent("hashchange"));
}
