import type { HoldfastError } from "./error.ts";
import type { Api } from "./gen/coordination.ts";
import type { Issue } from "./gen/linear.ts";
import type { Preferences, Project, Task } from "./gen/project.ts";
import type { Presence, Session } from "./gen/session.ts";
import type { ItemInput, Thing } from "./gen/watch.ts";
import { share } from "./share.ts";
import { asItIs, type ConversationView, conversationView, type View, type Watch, type Watcher, watchOf } from "./watch.ts";

/** What `hf.assistant()` follows, besides the conversation. */
export interface AssistantOptions {
  /** From how many of the conversation's newest messages on; 50. */
  messages?: number | undefined;
  /** The project; unset: the user's active one, or else the default one. */
  project?: string | undefined;
  /** The APIs whose standing is followed; `["codegen", "gemini", "linear"]`. */
  apis?: readonly string[] | undefined;
}

/** What an assistant's page holds, as it is now. */
export interface Assistant extends Omit<ConversationView, "signal"> {
  /** The session whose token the client has; undefined for a client with a key. */
  readonly session: Session | undefined;
  /** The user's sessions that go on, the newest first. */
  readonly sessions: readonly Session[];
  /** Where the user is online. */
  readonly presence: Presence | undefined;
  /** The user's projects that are not archived, those with the newest activity first. */
  readonly projects: readonly Project[];
  /** The one that the user works on. */
  readonly project: Project | undefined;
  /** The project's open tasks, or without a project all of the user's; the newest activity first. */
  readonly tasks: readonly Task[];
  /** The open issues of the project's teams and projects in Linear, the newest activity first. */
  readonly issues: readonly Issue[];
  /** Those in force: the user's own, and the tenant's where the user has none. */
  readonly preferences: Preferences | undefined;
  /** How the APIs stand, by their names; one that was never called is not there. */
  readonly apis: { readonly [name: string]: Api };
  /** Why a part cannot be followed, by its name; such a part is empty. */
  readonly errors: { readonly [part: string]: HoldfastError };
}

/** assistant puts many items of one stream together. It shows what is whole: not a project without its tasks. */
export function assistant(
  watcher: Watcher,
  conversationId: string,
  { messages = 50, project, apis = ["codegen", "gemini", "linear"] }: AssistantOptions = {},
): Watch<Assistant> {
  const talk = watcher.watch({ conversation: { conversationId, messageLimit: messages, signals: true } }, conversationView);
  const parts = new Map<string, { key: string; watch: Watch<View>; stop: () => void }>();
  const listeners = new Set<() => void>();
  let now: Assistant | undefined;
  let stopTalk = () => {};

  const things = <K extends keyof Thing>(part: string, kind: K): NonNullable<Thing[K]>[] =>
    [...parts]
      .filter(([name]) => name.split(" ")[0] === part)
      .flatMap(([, { watch }]) => [...(watch.get()?.things.values() ?? [])].flatMap((t) => (t[kind] ?? []) as never));
  const newest = <T extends { updateTime?: string | undefined }>(list: T[]): T[] =>
    list.sort((a, b) => Date.parse(b.updateTime ?? "") - Date.parse(a.updateTime ?? ""));

  /** wanted is what to follow, as far as is known by now. */
  const wanted = (): { [part: string]: ItemInput } => {
    const items: { [part: string]: ItemInput } = { session: { session: {} }, preferences: { preferences: true } };
    items["projects"] = { list: { projects: {} } };
    for (const api of apis) items[`apis ${api}`] = { api };
    const [p] = things("preferences", "preferences");
    const projectId = project ?? (p?.activeProjectId || p?.defaultProjectId);
    if (project ?? (p || parts.get("preferences")?.watch.error())) {
      items["tasks"] = { list: { tasks: { projectId, open: true } } };
      if (projectId) items["project"] = { projectId };
    }
    for (const type of ["team", "project"] as const) {
      const ids = things("project", "project").flatMap((at) =>
        at.issueSources.filter((s) => s.provider === "linear" && s.type === type).map((s) => s.id),
      );
      if (ids.length > 0) items[`issues ${type}`] = { list: { issues: { open: true, [`${type}Ids`]: ids } } };
    }
    return items;
  };

  const follow = () => {
    const items = wanted();
    for (const [name, { key, stop }] of parts)
      if (JSON.stringify(items[name]) !== key) {
        parts.delete(name);
        stop();
      }
    for (const [name, spec] of Object.entries(items)) {
      if (parts.has(name)) continue;
      const part = { key: JSON.stringify(spec), watch: watcher.watch(spec, asItIs), stop: () => {} };
      parts.set(name, part);
      part.stop = part.watch.subscribe(update);
    }
  };

  const update = () => {
    follow();
    const view = talk.get();
    const ready = view && [...parts.values()].every(({ watch }) => watch.get() || watch.error());
    if (ready) {
      const sessions = things("session", "session").filter((s) => !s.endTime);
      const errors: { [part: string]: HoldfastError } = {};
      for (const [name, { watch }] of parts) {
        const e = watch.error();
        if (e) errors[name] = e;
      }
      const { signal: _, ...conversation } = view;
      now = share(now, {
        ...conversation,
        session: sessions.find((s) => s.current),
        sessions: sessions.sort((a, b) => Date.parse(b.createTime ?? "") - Date.parse(a.createTime ?? "")),
        presence: things("session", "presence")[0],
        projects: newest(things("projects", "project")),
        project: things("project", "project")[0],
        tasks: newest(things("tasks", "task")),
        issues: newest([...new Map(things("issues", "issue").map((i) => [i.issueId, i])).values()]),
        preferences: things("preferences", "preferences")[0],
        apis: Object.fromEntries(things("apis", "api").map((a) => [a.api, a])),
        errors,
      });
    }
    for (const changed of [...listeners]) changed();
  };

  return watchOf<Assistant>({
    get: () => now,
    error: () => talk.error(),
    closed: () => watcher.closed,
    subscribe(changed) {
      const listener = () => changed();
      listeners.add(listener);
      if (listeners.size === 1) {
        stopTalk = talk.subscribe(update);
        update(); // what others follow already is there
      }
      return () => {
        listeners.delete(listener);
        if (listeners.size > 0) return;
        stopTalk();
        for (const { stop } of parts.values()) stop();
        parts.clear();
        // As React takes a subscription off and puts it on again.
        setTimeout(() => {
          if (listeners.size === 0) now = undefined;
        }, 10);
      };
    },
  });
}
