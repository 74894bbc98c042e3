// The suite runs in Node, in Chromium and in workerd, so it has only what all three have.
import { type Holdfast, type HoldfastError, holdfast, is, type Options, type Reason, type Watch } from "../../src/index.ts";

/** What a run of the suite is given. */
export interface World {
  /** Which of the three it is. */
  where: string;
  /** A real server. */
  api: string;
  /** A service's key there. */
  token: string;
  /** The proxy of chaos.ts before it. */
  chaos: string;
  /** A fake Gemini Live, where there is one. */
  gemini?: string;
}

type Run = (world: World) => Promise<void>;

export const tests = new Map<string, Run>();

export function test(name: string, run: Run): void {
  tests.set(name, run);
}

export async function run(name: string, world: World): Promise<void> {
  await tests.get(name)?.(world);
}

/** service is a client with the key, which acts for nobody, or for a user. */
export function service(world: World, more: Partial<Options> = {}): Holdfast {
  return holdfast({ url: world.api, token: world.token, ...more });
}

/** user is a client with the key, which acts for a user that only this test knows. */
export function user(world: World, more: Partial<Options> = {}): Holdfast {
  return service(world, { user: unique("u"), ...more });
}

/** broken is a base URL whose first calls meet, one after the other, what the actions say. */
export function broken(world: World, ...actions: string[]): string {
  return `${world.chaos}/${unique("p")}/${actions.join(",")}`;
}

export function unique(prefix: string): string {
  return prefix + Array.from(crypto.getRandomValues(new Uint8Array(9)), (b) => (b % 36).toString(36)).join("");
}

export function ok(value: unknown, what = "it"): asserts value {
  if (!value) throw new Error(`${what} does not hold`);
}

export function equal(got: unknown, want: unknown, what = "it"): void {
  const [g, w] = [JSON.stringify(got), JSON.stringify(want)];
  if (g !== w) throw new Error(`${what} is ${g}, not ${w}`);
}

/** fails awaits an error of Holdfast's with the reason. */
export async function fails(call: Promise<unknown>, reason: Reason): Promise<HoldfastError> {
  try {
    await call;
  } catch (e) {
    if (is(e, reason)) return e;
    throw new Error(`failed with ${e}, not with ${reason}`, { cause: e });
  }
  throw new Error(`succeeded, and should fail with ${reason}`);
}

/** until waits for a view that is as wanted, and leaves the watch. */
export async function until<T>(watch: Watch<T>, wanted: (view: T) => boolean): Promise<T> {
  for await (const view of watch) if (wanted(view)) return view;
  throw new Error("the watch ended");
}

export async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const out: T[] = [];
  for await (const item of items) out.push(item);
  return out;
}

/** several runs work for each item, so many at once. */
export async function several<T>(atOnce: number, items: T[], work: (item: T) => Promise<void>): Promise<void> {
  const left = [...items];
  await Promise.all(
    Array.from({ length: atOnce }, async () => {
      for (let item = left.shift(); item !== undefined; item = left.shift()) await work(item);
    }),
  );
}
