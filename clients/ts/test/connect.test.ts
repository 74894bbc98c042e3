// Connect-ES, from the template that others are given: Connect, gRPC-web and gRPC.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { after, before, describe, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import type { DescService } from "@bufbuild/protobuf";
import { type Client, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { type Server, start } from "./server.ts";

const here = fileURLToPath(new URL("..", import.meta.url));
const root = fileURLToPath(new URL("../../..", import.meta.url));

describe("Connect-ES", () => {
  let server: Server;
  let dir: string;
  let service: DescService;
  let problem: never;
  before(async () => {
    server = await start();
    dir = await mkdtemp(join(here, "node_modules", ".generated-"));
    const buf = spawnSync(
      "go",
      ["tool", "-modfile=../../tools/go.mod", "buf", "generate", "--template", "buf.gen.typescript.yaml", "--output", dir],
      {
        cwd: join(root, "examples/clients"),
        env: { ...process.env, PATH: join(here, "node_modules/.bin") + delimiter + process.env["PATH"] },
        encoding: "utf8",
      },
    );
    assert.equal(buf.status, 0, buf.stderr);
    const generated = (file: string) => import(pathToFileURL(join(dir, "gen/holdfast", file)).href);
    service = (await generated("conversation/v1/service_pb.js")).ConversationService;
    problem = (await generated("error/v1/error_pb.js")).ProblemSchema as never;
  });
  after(async () => {
    await server?.stop();
    await rm(dir, { recursive: true });
  });

  for (const [protocol, make] of Object.entries({
    Connect: (url: string) => createConnectTransport({ baseUrl: url, httpVersion: "2", useBinaryFormat: false }),
    "gRPC-web": (url: string) => createGrpcWebTransport({ baseUrl: url, httpVersion: "2" }),
    gRPC: (url: string) => createGrpcTransport({ baseUrl: url }),
  }))
    test(protocol, async () => {
      const talk = createClient(service, make(server.api)) as Client<never> as unknown as {
        [call: string]: (request: object, options: object) => Promise<{ [field: string]: unknown }>;
      };
      const headers = { headers: { Authorization: `Bearer ${server.token}`, "Holdfast-User": protocol } };
      const conversationId = `c-${protocol}`;
      const made = await talk["append"]?.(
        { conversationId, createIfMissing: true, requestId: "r-1", messages: [{ role: 1, text: "Hello" }] },
        headers,
      );
      assert.equal(made?.["version"], 1n);
      const again = await talk["append"]?.(
        { conversationId, createIfMissing: true, requestId: "r-1", messages: [{ role: 1, text: "Hello" }] },
        headers,
      );
      assert.deepEqual(again, made);
      const error = await talk["getConversation"]?.({ conversationId: "none" }, headers).then(
        () => assert.fail("it should not be there"),
        (e) => ConnectError.from(e),
      );
      assert.equal((error?.findDetails(problem)[0] as { reason?: string } | undefined)?.reason, "NOT_FOUND");
    });
});
