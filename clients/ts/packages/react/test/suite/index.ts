import "./live.tsx";
import "./append.tsx";
import "./hooks.tsx";

export { run, tests } from "./harness.tsx";
