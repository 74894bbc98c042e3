import { HoldfastError, is } from "../../src/index.ts";
import { broken, equal, fails, ok, service, test, unique, user } from "./harness.ts";

test("an error has its reason, what helps, and its facts", async (world) => {
  const talk = user(world).conversation(unique("c"));
  const missing = await fails(talk.get(), "NOT_FOUND");
  equal([missing.retry, missing.call, missing.name], ["never", "conversation.getConversation", "HoldfastError"]);
  await talk.create();
  const other = await fails(talk.update({ title: "x" }, { ifVersion: 9 }), "VERSION_MISMATCH");
  equal([other.retry, other.mismatch?.currentVersion, other.mismatch?.exists], ["reread", 1, true]);
  const bad = await fails(talk.append({ role: "user", text: "x", clientMessageId: "x".repeat(600) }), "FIELD_INVALID");
  ok(bad.violations?.fields[0]?.field.includes("client_message_id"), "that the violation names the field");
  const unknown = await fails(talk.append({ role: "user", txt: "x" } as never), "FIELD_UNKNOWN");
  ok(unknown.violations?.fields[0]?.field.includes("txt"), "that the violation names the field");
});

test("a reason narrows the error's type", async (world) => {
  const hf = user(world);
  const e: unknown = await hf
    .conversation(unique("c"))
    .get()
    .catch((e) => e);
  if (!hf.is(e, "NOT_FOUND")) throw e;
  const reason: "NOT_FOUND" = e.reason;
  ok(e instanceof HoldfastError && is(e) && !is(e, "FENCED", "LEASE_HELD") && !is(new Error("no")) && !is(undefined), reason);
});

test("a wrong key fails at once", async (world) => {
  const e = await fails(service(world, { token: "hfk_wrong" }).preferences.get(), "CREDENTIAL_INVALID");
  equal(e.retry, "never");
  await fails(service(world, { token: undefined }).preferences.get(), "CREDENTIAL_MISSING");
});

test("an aborted call rejects with the signal's reason", async (world) => {
  const why = new Error("enough");
  const before = AbortSignal.abort(why);
  equal(
    await user(world)
      .preferences.get({ signal: before })
      .catch((e) => e === why),
    true,
  );
  const controller = new AbortController();
  const hf = user(world, { url: broken(world, "hole") });
  const call = hf.preferences.get({ signal: controller.signal }).catch((e) => e);
  setTimeout(() => controller.abort(why), 50);
  equal((await call) === why, true);
  const waiting = new AbortController();
  const down = user(world, { url: "http://127.0.0.1:9" })
    .preferences.get({ signal: waiting.signal })
    .catch((e) => e);
  setTimeout(() => waiting.abort(why), 300);
  equal((await down) === why, true, "that it also ends the wait between two tries");
});

test("no call outlives its timeout, and says with which id to repeat it", async (world) => {
  for (const action of ["hole", "hang"]) {
    const hf = user(world, { url: broken(world, ...Array(20).fill(action)), timeout: 700, attemptTimeout: 250 });
    const talk = hf.conversation(unique("c"));
    const e = await fails(talk.create(), "UNREACHABLE");
    ok(e.requestId, "the id");
  }
  const hf = user(world, { url: broken(world, "hole"), timeout: 300 });
  equal((await fails(hf.conversation("c").create(), "DEADLINE_EXCEEDED")).retry, "same");
});

test("a change whose outcome was not known happens once when it is repeated with its id", async (world) => {
  const as = { user: unique("u") };
  const id = unique("c");
  const cut = service(world, { ...as, url: broken(world, "hang"), timeout: 400 });
  const e = await fails(
    cut.conversation(id).append({ role: "user", text: "once" }, { createIfMissing: true }),
    "DEADLINE_EXCEEDED",
  );
  const again = service(world, as).conversation(id);
  await again.append({ role: "user", text: "once" }, { createIfMissing: true }, { requestId: e.requestId });
  equal(
    (await again.get({ messages: 10 })).messages.map((m) => m.text),
    ["once"],
  );
});

test("what stands between and is not Holdfast is told apart", async (world) => {
  const hf = (...actions: string[]) => user(world, { url: broken(world, ...actions), timeout: 3000 });
  await hf("503", "502").preferences.get(); // passes
  await fails(hf("html").preferences.get(), "ANSWER_UNREADABLE");
  if (world.where !== "chromium") await fails(hf("login").preferences.get(), "ANSWER_UNREADABLE"); // a browser shows a page nothing of it
  await fails(hf("404").preferences.get(), "ANSWER_UNREADABLE");
  await fails(hf(...Array(20).fill("503")).preferences.get({ timeout: 500 }), "UNREACHABLE");
});

test("the server's word decides whether a call is sent again", async (world) => {
  // Each is told once, and then the server answers.
  for (const reason of ["OVERLOADED", "CONTENTION", "SHUTTING_DOWN", "OUTCOME_UNKNOWN", "INTERNAL", "NEW_AND_SAME"]) {
    const retry = { OUTCOME_UNKNOWN: "SAME", INTERNAL: "SAME", NEW_AND_SAME: "SAME" }[reason] ?? "AFTER";
    await user(world, { url: broken(world, `problem-${reason}-${retry}-0.02`) }).preferences.get();
  }
  for (const [reason, retry] of [
    ["FENCED", "REREAD"],
    ["QUOTA_EXCEEDED", "NEVER"],
    ["NEW_AND_NEVER", "NEVER"],
  ] as const)
    await fails(user(world, { url: broken(world, `problem-${reason}-${retry}-0`) }).preferences.get(), reason as never);
  await fails(
    user(world, { url: broken(world, "problem-INTERNAL-SAME-0", "problem-INTERNAL-SAME-0") }).preferences.get(),
    "INTERNAL",
  );
});

test("a wait that the timeout does not allow is not begun", async (world) => {
  const e = await fails(user(world, { url: broken(world, "problem-OVERLOADED-AFTER-600") }).preferences.get(), "OVERLOADED");
  equal(e.retryAfter, 600_000);
});

test("the status says whether the server answers", async (world) => {
  const hf = user(world, { url: broken(world, "503") });
  const seen: boolean[] = [];
  const stop = hf.status.subscribe(() => seen.push(hf.status.get().reachable));
  await hf.preferences.get();
  stop();
  equal(seen, [false, true]);
  const one = hf.status.get();
  ok(one === hf.status.get(), "that it is one value until it changes");
});
