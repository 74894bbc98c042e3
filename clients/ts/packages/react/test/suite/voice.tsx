import type { Holdfast } from "@holdfast/client";
import { type Socket, webSocket } from "@holdfast/live";
import { type LiveConversation, useLiveConversation, type VoiceOptions } from "../../src/voice.ts";
import { equal, ok, show, test, unique, until, user, type World } from "./harness.tsx";

/** A device whose user writes, and whose sockets can be closed. */
function device(world: World, hf: Holdfast, id: string, name: string) {
  let voice: LiveConversation | undefined;
  let [opened, runs] = [0, 0];
  let socket: Socket | undefined;
  const connect = webSocket({ url: world.gemini });
  const options: VoiceOptions = {
    setup: { model: "models/fake" },
    device: { name },
    token: async () => {
      const minted = await fetch(`${world.gemini}/v1alpha/auth_tokens`, {
        method: "POST",
        headers: { "x-goog-api-key": "fake-key" },
      });
      return ((await minted.json()) as { name: string }).name;
    },
    tools: { start_run: () => ({ run: ++runs }) },
    connect(...how) {
      opened++;
      socket = connect(...how);
      return socket;
    },
    audio: { start: async () => {}, stop() {}, play() {}, interrupt: () => 0, level: () => ({ in: 0, out: 0 }) },
  };
  function Talk() {
    voice = useLiveConversation(id, options);
    return <p>{voice.messages.map((m) => `${m.role}: ${m.text.trim()}`).join("; ")}</p>;
  }
  const page = show(hf, <Talk />);
  return {
    page,
    now: () => voice as LiveConversation, // undefined before the first render
    opened: () => opened,
    runs: () => runs,
    drop: () => socket?.close(),
  };
}

test("a page holds a conversation by voice, over sockets that close and devices that change", async (world) => {
  const name = unique("u");
  const id = unique("c");
  const hf = user(world, { user: name });
  await hf.conversation(id).create();
  const phone = device(world, hf, id, "phone");
  const laptop = device(world, user(world, { user: name }), id, "laptop");
  await until(() => Boolean(phone.now()?.conversation && laptop.now()?.conversation));
  equal([phone.now().status, phone.now().floor.holder], ["idle", undefined]);

  phone.now().sendText("Start a run.");
  const said = "user: Start a run.; assistant: I’ll start a run for that.; assistant: It is on its way.";
  await until(
    () => phone.page.text() === said && laptop.page.text() === said,
    () => [phone.page.text(), laptop.page.text()],
  );
  equal([phone.now().status, phone.runs(), phone.opened()], ["live", 1, 1]); // also in StrictMode
  await until(() => laptop.now().floor.holder === "phone");

  await until(() => phone.now().connection?.resumable === true);
  phone.drop();
  await until(() => phone.now().gaps.length === 1 && phone.now().status === "live");
  ok(phone.now().connection?.plan === "resumed", "that the provider's session goes on");

  laptop.now().floor.take();
  await until(() => laptop.now().status === "live" && laptop.now().microphone === "on");
  await until(() => phone.now().status === "elsewhere" && phone.now().floor.holder === "laptop");
  laptop.now().sendText("Move ENG-7 to review.");
  await until(
    () => /Move ENG-7.*there is no tool/.test(JSON.stringify(laptop.now().messages) + JSON.stringify(laptop.now().toolCalls)),
    () => laptop.page.text(),
  );
  phone.page.end();
  laptop.page.end();
  // The last component to show it ends the session.
  for await (const { conversation } of hf.conversation(id).watch()) if (conversation?.live?.closeTime) break;
});
