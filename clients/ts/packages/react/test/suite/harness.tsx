// What the tests of components share. They run on a page, with React 18 and with 19.
import type { Holdfast, Options } from "@holdfast/client";
import { Component, type ReactNode, StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { user, type World } from "../../../client/test/suite/harness.ts";
import { HoldfastProvider } from "../../src/index.ts";

export {
  all,
  broken,
  equal,
  fails,
  ok,
  run,
  service,
  test,
  tests,
  unique,
  user,
  type World,
} from "../../../client/test/suite/harness.ts";

export interface Shown {
  /** What is on the page. */
  text(): string;
  element: HTMLElement;
  render(children: ReactNode): void;
  end(): void;
}

/** show renders below a provider, in StrictMode. */
export function show(client: Holdfast, children: ReactNode): Shown {
  const element = document.body.appendChild(document.createElement("main"));
  const root = createRoot(element);
  const render = (inside: ReactNode) =>
    root.render(
      <StrictMode>
        <HoldfastProvider client={client}>{inside}</HoldfastProvider>
      </StrictMode>,
    );
  render(children);
  return {
    element,
    text: () => element.textContent ?? "",
    render,
    end() {
      root.unmount();
      element.remove();
    },
  };
}

/** until waits for something to hold. */
export async function until(holds: () => boolean, what: () => unknown = () => holds): Promise<void> {
  const end = performance.now() + 20_000;
  while (!holds()) {
    if (performance.now() > end) throw new Error(`it never holds: ${what()}`);
    await new Promise((done) => setTimeout(done, 5));
  }
}

export async function shows(shown: Shown, text: string): Promise<void> {
  await until(
    () => shown.text() === text,
    () => `${text}; the page shows ${shown.text()}`,
  );
}

/** Counts the streams of a client. */
export interface Streams {
  hf: Holdfast;
  opened(): number;
  open(): number;
}

/** counted is a client with a user of its own, which counts its streams. */
export function counted(world: World, more: Partial<Options> = {}): Streams {
  let [opened, open] = [0, 0];
  const hf = user(world, {
    ...more,
    async fetch(input, init) {
      if (!String(input).endsWith("/Watch")) return await fetch(input, init);
      opened++;
      open++;
      init?.signal?.addEventListener("abort", () => open--);
      return await fetch(input, init);
    },
  });
  return { hf, opened: () => opened, open: () => open };
}

/** Boundary shows the reason of an error, and a button that tries again. */
export class Boundary extends Component<{ children: ReactNode }, { error?: { reason?: string } | undefined }> {
  override state: { error?: { reason?: string } | undefined } = {};
  static getDerivedStateFromError(error: { reason?: string }) {
    return { error };
  }
  override render() {
    if (!this.state.error) return this.props.children;
    return (
      <button type="button" onClick={() => this.setState({ error: undefined })}>
        {this.state.error.reason ?? String(this.state.error)}
      </button>
    );
  }
}
