// A `globalSetup` of vitest: one server for the run.
import { start, variable } from "./index.ts";

/** setup starts the server before the first test, and resolves to what stops it after the last. */
export default async function setup(): Promise<() => Promise<void>> {
  const { stop, ...address } = await start();
  process.env[variable] = JSON.stringify(address);
  return async () => {
    delete process.env[variable];
    await stop();
  };
}
