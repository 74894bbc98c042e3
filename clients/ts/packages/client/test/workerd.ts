// The suite as a Worker: a request names a test, and the answer is why it failed, or nothing.
import { run } from "./suite/index.ts";

export default {
  async fetch(request: Request): Promise<Response> {
    const { name, world } = (await request.json()) as { name: string; world: Parameters<typeof run>[1] };
    try {
      await run(name, world);
      return new Response("");
    } catch (e) {
      return new Response(e instanceof Error ? `${e.stack}\n${e.cause instanceof Error ? e.cause.stack : ""}` : String(e));
    }
  },
};
