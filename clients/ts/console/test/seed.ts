// What the pages show in tests.
import type { Holdfast } from "@holdfast/client";

/** seed makes a project with a task, an API with calls that wait, a user's session, and objects of a type with a schema. */
export async function seed(hf: Holdfast): Promise<void> {
  const { rpc } = hf;
  const api = "linear";
  const call = (key: string, operation: string) =>
    rpc.coordination.beginCall({ api, key, operation, holder: "sync-2", timeout: "60s" });
  const [done, down] = [await call("list-1", "list_issues"), await call("ENG-142-state", "update_issue")];
  await rpc.coordination.finishCall({
    api,
    key: "list-1",
    fencingToken: done.lease?.fencingToken ?? 0,
    completed: { httpStatus: 200 },
  });
  await rpc.coordination.finishCall({
    api,
    key: "ENG-142-state",
    fencingToken: down.lease?.fencingToken ?? 0,
    failed: { failure: "retryable", error: "503", retryAfter: "600s" },
  });
  const lost = await call("ENG-131-comment", "create_comment");
  await rpc.coordination.finishCall({
    api,
    key: "ENG-131-comment",
    fencingToken: lost.lease?.fencingToken ?? 0,
    failed: { failure: "unknown", error: "no answer came" },
  });
  await rpc.coordination.acquire({ api: "gemini", operation: "generate" });
  await rpc.session.createSession({ user: "maya", device: { name: "MacBook", platform: "web" }, activeConversationId: "c1" });
  await rpc.session.createSession({ user: "maya", device: { name: "iPhone" } });
  await rpc.project.putProject({
    projectId: "p1",
    project: { title: "Holdfast for the web", description: "The page of an assistant." },
  });
  await rpc.project.putTask({
    taskId: "t1",
    task: { title: "Refactor token refresh", projectId: "p1", provider: "codegen", runId: "90211" },
    report: { status: "running" },
  });
  await rpc.state.putType({
    type: {
      type: "cart",
      stateSchema: { type: "object", properties: { total: { type: "number", minimum: 0 } }, required: ["total"] },
    },
  });
  await rpc.state.apply({
    ref: { type: "cart", name: "c-1", owner: "" },
    operations: [{ setState: { total: 12.5 } }, { put: { entry: { collection: "items", key: "book", json: { sku: "b-17" } } } }],
  });
}
