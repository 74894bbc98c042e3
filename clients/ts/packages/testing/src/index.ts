import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync, readFileSync, rmSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";

/** How to start a server. */
export interface Options {
  /** The program; otherwise HOLDFAST_BIN, or `holdfast` on the PATH. */
  binary?: string | undefined;
}

/** Where a server is. It can be written down as JSON and given to another process. */
export interface Address {
  /** The base URL of its API. */
  readonly api: string;
  /** A service's key of its first tenant, `dev`. */
  readonly token: string;
  /** The console's link. It signs in the first person who opens it. */
  readonly console: string;
  /** Its database, as its owner; it is thrown away with the server. */
  readonly database: string;
  /** The program that it runs. */
  readonly binary: string;
}

/** A Holdfast with a database of its own, which is thrown away when it stops. */
export interface Server extends Address, AsyncDisposable {
  /** Ends the server and its database. */
  stop(): Promise<void>;
}

/** A tenant that only one test knows. What it has here, `holdfast()` of `@holdfast/client` takes as its options. */
export interface Tenant {
  readonly url: string;
  /** A service's key, which acts for nobody, or with `user` for a user. */
  readonly token: string;
  readonly tenant: string;
}

/** start starts a Holdfast. That takes about two seconds, so one is for a whole run of tests; each test gets a tenant of it. */
export async function start(options: Options = {}): Promise<Server> {
  const binary = options.binary ?? process.env["HOLDFAST_BIN"] ?? "holdfast";
  const dir = await mkdtemp(join(tmpdir(), "holdfast-"));
  // Its log is a file: a pipe would break with this process, and the server with the pipe, before its database has ended.
  const log = openSync(join(dir, "log"), "w");
  const server = spawn(binary, ["dev", "--ephemeral", "--json", "--addr", "127.0.0.1:0"], {
    cwd: dir,
    stdio: ["ignore", "pipe", log],
  });
  closeSync(log);
  // Who forgets to stop it, or fails before, leaves no server behind.
  const leave = () => {
    server.kill();
    rmSync(dir, { recursive: true, force: true });
  };
  process.once("exit", leave);
  const over = once(server, "exit").catch((cause) => cause); // an error where there is no such program
  const stop = async () => {
    server.ref();
    server.kill();
    await over;
    process.off("exit", leave);
    leave();
  };
  const line = await Promise.race([once(createInterface(server.stdout as Socket), "line"), over]);
  try {
    if (line instanceof Error) throw line;
    if (typeof line[0] !== "string") throw new Error(`it ended with ${line[0]}`);
    const { api, token, console, database } = JSON.parse(line[0]) as Address;
    // It holds up the end of no process.
    server.unref();
    (server.stdout as Socket).unref();
    return { api, token, console, database, binary, stop, [Symbol.asyncDispose]: stop };
  } catch (cause) {
    const why = `${cause}\n${readFileSync(join(dir, "log"), "utf8")}`;
    await stop();
    throw new Error(`no Holdfast was started by ${binary}; name the program by HOLDFAST_BIN or as \`binary\`: ${why}`, { cause });
  }
}

/** What the server that `@holdfast/testing/vitest` starts is passed on by, to the processes of the tests. */
export const variable = "HOLDFAST_TESTING";

let own: Promise<Server> | undefined;

/**
 * tenant makes a tenant on a server: the given one, that of the run of vitest, or else one that is started for this process and ends
 * with it.
 */
export async function tenant(server?: Address): Promise<Tenant> {
  const given = process.env[variable];
  if (!server && !given) own ??= start();
  const { api, database, binary } = server ?? (await own) ?? (JSON.parse(given ?? "") as Address);
  const name = `test-${Array.from(crypto.getRandomValues(new Uint8Array(8)), (b) => b.toString(16).padStart(2, "0")).join("")}`;
  const env = { ...process.env, HOLDFAST_MIGRATE_DATABASE_URL: database };
  const run = promisify(execFile);
  await run(binary, ["tenant", "create", name], { env });
  const { stdout } = await run(binary, ["key", "create", "--tenant", name], { env });
  return { url: api, token: stdout.trim(), tenant: name };
}
