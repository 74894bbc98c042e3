// LangChain's validation of checkpointers, as it is. vitest runs it, from langgraph.test.ts, which starts the server.
import { holdfast } from "@holdfast/client";
import { MemorySaver } from "@langchain/langgraph-checkpoint";
import { deltaChannelHistoryTests, validate } from "@langchain/langgraph-checkpoint-validation";
import { HoldfastSaver } from "../src/index.ts";

let made = 0;
const { HOLDFAST_API: url, HOLDFAST_TOKEN: token, SAVER } = process.env;
const initializer = {
  checkpointerName: SAVER ?? "HoldfastSaver",
  createCheckpointer: () =>
    SAVER === "MemorySaver" ? new MemorySaver() : new HoldfastSaver(holdfast({ url: url ?? "", token, user: `v${++made}` })),
};
validate(initializer as never);
deltaChannelHistoryTests(initializer as never);
