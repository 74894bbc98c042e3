import { defineObject, type StandardSchema } from "../../src/index.ts";
import { all, broken, equal, fails, ok, service, test, unique, until, user } from "./harness.ts";

/** schema makes a Standard Schema by hand, so that the suite needs none of the libraries. */
function schema<T>(check: (value: unknown) => T | string): StandardSchema<T, T> {
  return {
    "~standard": {
      version: 1,
      vendor: "test",
      validate(value) {
        const got = check(value);
        return typeof got === "string" ? { issues: [{ message: got, path: ["at"] }] } : { value: got };
      },
    },
  };
}

interface CartState {
  total: number;
  address?: { city: string; zip?: string };
  notes: string[];
}
const cartState = schema<CartState>((v) => {
  const s = v as Partial<CartState>;
  if (s.total !== undefined && typeof s.total !== "number") return "total is no number";
  return { total: s.total ?? 0, notes: s.notes ?? [], ...(s.address && { address: s.address }) };
});
const item = schema<{ sku: string; price: number }>((v) =>
  typeof (v as { price?: unknown } | null)?.price === "number" ? (v as { sku: string; price: number }) : "price is no number",
);
const Cart = defineObject("cart", { state: cartState, collections: { items: item } });
const Counter = defineObject("counter", { state: schema<{ n: number }>((v) => ({ n: (v as { n?: number }).n ?? 0 })) });

test("a typed object is read, changed by a function and watched", async (world) => {
  const cart = user(world).state(Cart, unique("c"));
  const none = await cart.get();
  equal([none.absent, none.version, none.state, none.entries], [true, 0, { total: 0, notes: [] }, { items: [] }]);
  const seen: unknown[] = [];
  for await (const { state, entries, version, absent } of cart.watch({ items: 10 })) {
    seen.push([version, absent, state.total, entries.items.map((e) => `${e.key} ${e.value.price}`)]);
    if (seen.length === 1)
      equal(
        await cart.update((draft, { items }) => {
          items.put("book", { sku: "b-17", price: 12.5 });
          draft.total += 12.5;
        }),
        { state: { total: 12.5, notes: [] }, version: 1 },
      );
    else if (seen.length === 2)
      await cart.update(
        (draft, { items }) => {
          draft.total -= items.get("book")?.price ?? 0;
          items.delete("book");
          items.append({ sku: "a", price: 1 });
          return { ...draft, notes: ["returned"] };
        },
        { entries: { items: ["book"] } },
      );
    else break;
  }
  equal(seen, [
    [0, true, 0, []],
    [1, false, 12.5, ["book 12.5"]],
    [2, false, 0, ["000000000001 1"]],
  ]);
  const now = await cart.get({ entries: { items: 5 } });
  equal(
    [now.state, now.entries.items, now.object?.version],
    [{ total: 0, notes: ["returned"] }, [{ key: "000000000001", value: { price: 1, sku: "a" }, version: 2 }], 2],
  );
  ok(await cart.delete(), "that it was there");
  ok(!(await cart.delete()), "that it is gone");
});

test("updates at once are all counted, and a function runs again where someone else was faster", async (world) => {
  const counter = user(world).state(Counter, unique("n"));
  let runs = 0;
  await Promise.all(
    Array.from({ length: 12 }, () =>
      counter.update((draft) => {
        runs++;
        draft.n++;
      }),
    ),
  );
  const { state, version } = await counter.get();
  equal([state.n, version], [12, 12]);
  ok(runs >= 12, "the runs");
});

test("an update whose answers are lost counts once", async (world) => {
  const as = { user: unique("u") };
  const name = unique("n");
  for (const actions of [
    ["ok", "after"],
    ["before", "ok", "after", "before"],
    ["ok", "twice"],
    ["ok", "hang"],
    ["after", "cut7", "ok", "after"],
  ])
    await service(world, { ...as, url: broken(world, ...actions), attemptTimeout: 400 })
      .state(Counter, name)
      .update((draft) => void draft.n++);
  equal((await service(world, as).state(Counter, name).get()).state.n, 5);
});

test("an update writes what it changed, and leaves what the schema does not know", async (world) => {
  const hf = user(world);
  const name = unique("c");
  const cart = hf.state(Cart, name);
  const raw = async () => (await hf.rpc.state.read({ reads: [{ ref: { type: "cart", name } }] })).objects[0]?.state;
  await cart.apply([
    { setState: { total: 1, newer: { deep: [1] }, address: { city: "Kyoto", zip: "6" }, "a/b~c": 1, notes: [] } },
  ]);
  equal(await cart.update((d) => void d.total++), {
    state: { total: 2, notes: [], address: { city: "Kyoto", zip: "6" } },
    version: 2,
  });
  await cart.update((d) => {
    delete d.address?.zip;
    d.notes.push("x");
  });
  equal(await raw(), { "a/b~c": 1, address: { city: "Kyoto" }, newer: { deep: [1] }, notes: ["x"], total: 2 });
  const { version } = await cart.get();
  equal((await cart.update(() => {})).version, version, "nothing changed, so nothing is written");
  const Any = defineObject("cart", { state: schema<{ [key: string]: unknown }>((v) => v as { [key: string]: unknown }) });
  await hf.state(Any, name).update((d) => {
    for (const key of ["a/b~c", "constructor", "__proto__", "", "~1", "ü"])
      Object.defineProperty(d, key, { value: { v: key }, enumerable: true, configurable: true });
  });
  const got = (await hf.state(Any, name).get()).state;
  for (const key of ["a/b~c", "constructor", "", "~1", "ü"])
    equal(Object.getOwnPropertyDescriptor(got, key)?.value, { v: key }, key);
  await hf.state(Any, name).update((d) => {
    delete d["constructor"];
  });
  ok(!Object.hasOwn((await hf.state(Any, name).get()).state, "constructor"), "a removed field of an unlucky name");
});

test("what does not fit its schema is an error, and is not written", async (world) => {
  const hf = user(world);
  const name = unique("c");
  const cart = hf.state(Cart, name);
  const e = await fails(
    cart.update((d) => ({ ...d, total: "much" }) as never),
    "SCHEMA_MISMATCH",
  );
  equal([e.retry, e.issues], ["never", [{ message: "total is no number", path: ["at"] }]]);
  await fails(
    cart.update((_, { items }) => items.put("a", { sku: "a" } as never)),
    "SCHEMA_MISMATCH",
  );
  equal((await cart.get()).absent, true);
  await cart.apply([{ setState: { total: "much" } }, { put: { entry: { collection: "items", key: "a", json: null } } }]);
  await fails(cart.get(), "SCHEMA_MISMATCH");
  await fails(
    until(cart.watch(), () => true),
    "SCHEMA_MISMATCH",
  );
  await cart.apply([{ setState: { total: 3 } }]);
  await fails(cart.get({ entries: { items: 5 } }), "SCHEMA_MISMATCH");
  equal((await cart.get()).state.total, 3);
  await cart.apply([{ setStateJson: '{"total":12345678901234567890}' }]);
  await fails(cart.get(), "NUMBER_INEXACT");
  let thrown: unknown;
  try {
    defineObject("strict", {
      state: schema<{ must: string }>((v) => ((v as { must?: string }).must ? (v as { must: string }) : "must is missing")),
    });
  } catch (error) {
    thrown = error;
  }
  ok(hf.is(thrown, "SCHEMA_MISMATCH"), "that a type without a first state is refused where it is defined");
});

test("entries come in the order of their bytes, page by page", async (world) => {
  const cart = user(world).state(Cart, unique("c"));
  const keys = ["", "a", "B", "ä", "\uffee", "😀", "z", "a/b", "~"].filter(Boolean);
  await cart.apply([...keys].map((key) => ({ put: { entry: { collection: "items", key, json: { sku: key, price: 1 } } } })));
  const bytes = (s: string) => Array.from(new TextEncoder().encode(s), (b) => b.toString(16).padStart(2, "0")).join("");
  const sorted = [...keys].sort((a, b) => (bytes(a) < bytes(b) ? -1 : 1));
  const names = (entries: readonly { key: string }[]) => entries.map((e) => e.key);
  equal(names(await all(cart.entries("items", { limit: 2 }))), sorted);
  equal(names(await all(cart.entries("items", { limit: 3, reverse: true }))), [...sorted].reverse());
  equal(names((await cart.get({ entries: { items: 50 } })).entries.items), sorted);
  equal(names((await cart.get({ entries: { items: 2 } })).entries.items), sorted.slice(-2));
  equal(names((await until(cart.watch({ items: 50 }), () => true)).entries.items), sorted);
});

test("a typed object may be the tenant's, and conditions hold", async (world) => {
  const name = unique("n");
  const shared = service(world).state(Counter, name);
  await shared.update((d) => ({ ...d, n: 7 }));
  const read = user(world).state(Counter, name, "");
  equal((await read.get()).state.n, 7);
  await fails(shared.apply([{ increment: { path: "n" } }], { ifVersion: 9 }), "VERSION_MISMATCH");
  equal((await shared.apply([{ increment: { path: "n" } }], { ifVersion: 1 })).results[0]?.number, 8);
  const strict = user(world).state(Counter, unique("n"));
  await fails(strict.apply([{ increment: { path: "n" } }], { mustExist: true }), "NOT_FOUND");
});
