import "./live.tsx";
import "./voice.tsx";
import "./append.tsx";
import "./hooks.tsx";

export { run, tests } from "./harness.tsx";
