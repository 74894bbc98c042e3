export { HoldfastSaver } from "./saver.ts";
export { HoldfastStore } from "./store.ts";
