import "./calls.ts";
import "./errors.ts";
import "./tokens.ts";
import "./watch.ts";
import "./live.ts";
import "./state.ts";
import "./outbox.ts";
import "./chaos.ts";

export { run, tests } from "./harness.ts";
