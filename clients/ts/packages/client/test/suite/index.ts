import "./calls.ts";
import "./errors.ts";
import "./tokens.ts";
import "./watch.ts";
import "./chaos.ts";

export { run, tests } from "./harness.ts";
