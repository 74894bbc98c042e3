import { broken, equal, ok, service, several, test, unique, type user } from "./harness.ts";

// How many bytes the answer's head and body have, and a few more.
const head = 420;
const body = 620;

/** upTo counts to n, in Node one by one, and elsewhere in steps: the bytes are the same, and what reads them differs at few of them. */
const upTo = (n: number, where: string): number[] =>
  Array.from({ length: n }, (_, i) => i).filter((i) => where === "node" || i % 7 === 0);

/** appended checks that each of these actions, met by an append, loses nothing and doubles nothing. */
async function appended(world: Parameters<typeof user>[0], actions: string[]): Promise<void> {
  const as = { user: unique("u") };
  const texts = new Map<string, string[]>();
  const ids = Array.from({ length: 16 }, () => unique("c"));
  await several(
    ids.length,
    ids.map((id, i) => [id, actions.filter((_, j) => j % ids.length === i)] as const),
    async ([id, mine]) => {
      await service(world, as).conversation(id).create();
      let version = 1;
      for (const action of mine) {
        const hf = service(world, { ...as, url: broken(world, ...action.split("+")), attemptTimeout: 400, timeout: 20_000 });
        const answer = await hf.conversation(id).append({ role: "user", text: action });
        equal(answer.version, ++version, `the version after ${action}`);
        equal(answer.messages.length, 1, `the answer after ${action}`);
      }
      texts.set(id, mine);
    },
  );
  for (const [id, mine] of texts) {
    const got: string[] = [];
    for await (const m of service(world, as).conversation(id).messages({ pageSize: 200 })) got.push(m.text);
    equal(got, mine, "what is there");
  }
}

test("cut before and after each commit: nothing acknowledged is lost or doubled", async (world) => {
  await appended(world, [
    "before",
    "after",
    "before+after",
    "after+before",
    "after+after",
    "twice",
    "twice+after",
    "after+twice",
    "503",
    "after+503",
    "hang",
    "hole",
    "hole+hang",
    "slow600",
    "slow600+slow600",
    "cut0",
    "cut1",
  ]);
});

test("cut at every byte of the answer's body: nothing acknowledged is lost or doubled", async (world) => {
  await appended(
    world,
    upTo(body, world.where).map((i) => `cut${i}`),
  );
});

test("cut at every byte of the answer's head: nothing acknowledged is lost or doubled", async (world) => {
  await appended(
    world,
    upTo(head, world.where).map((i) => `head${i}`),
  );
});

test("a stream that is cut at any byte fails, and never ends as if it were whole", async (world) => {
  const as = { user: unique("u") };
  const id = unique("c");
  await service(world, as).conversation(id).append({ role: "user", text: "Hello — ünïcode" }, { createIfMissing: true });
  await several(16, upTo(700, world.where), async (bytes) => {
    // More than once, because a browser sends by itself again what had no answer at all.
    const hf = service(world, { ...as, url: broken(world, ...Array(5).fill(`stream${bytes}`)) });
    let ended = false;
    try {
      for await (const { changed } of hf.rpc.watch.watch({
        items: [{ itemId: "talk", conversation: { conversationId: id, messageLimit: 10 } }],
      }))
        ok(changed?.reset && changed.put.some((t) => t.message?.text === "Hello — ünïcode"), "the snapshot");
      ended = true;
    } catch (e) {
      if (!hf.is(e, "UNREACHABLE")) throw e;
    }
    ok(!ended, `stream${bytes}: that it fails`);
  });
});
