// The suite, in Node, in Chromium and in workerd, against one server. HOLDFAST_WHERE=node runs it in one of them.
import { after, before, describe, test } from "node:test";
import { type Server, start } from "../../../test/server.ts";
import { type Chaos, chaos } from "./chaos.ts";
import { type Environment, inChromium, inWorkerd, node } from "./environments.ts";
import { tests } from "./suite/index.ts";

const environments = { node, chromium: inChromium, workerd: inWorkerd };
const only = process.env["HOLDFAST_WHERE"];

describe("client", { concurrency: false }, () => {
  let server: Server;
  let proxy: Chaos;
  before(async () => {
    server = await start();
    proxy = await chaos(server.api);
  });
  after(async () => {
    const cuts = Object.values(proxy?.count ?? {}).reduce((a, b) => a + b, 0);
    console.log(`calls that were broken: ${cuts} ${JSON.stringify(proxy?.count)}`);
    proxy?.close();
    await server?.stop();
  });
  for (const [where, open] of Object.entries(environments)) {
    if (only && only !== where) continue;
    describe(where, { concurrency: false }, () => {
      let environment: Environment;
      before(async () => {
        environment = await open();
      });
      after(async () => await environment?.stop());
      for (const name of tests.keys())
        test(name, { timeout: 120_000 }, () =>
          environment.run(name, { where, api: server.api, token: server.token, chaos: proxy.url }),
        );
    });
  }
});
