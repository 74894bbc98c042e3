/**
 * frames reads the messages of a Connect stream: a byte of flags, the length in four, and JSON. The last one has the flag 2, and says how
 * the call ended; a stream that ends without it was cut.
 */
export async function* frames(body: ReadableStream<Uint8Array>): AsyncGenerator<[last: boolean, text: string]> {
  const reader = body.getReader();
  const text = new TextDecoder();
  let held: Uint8Array[] = [];
  let size = 0;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      held.push(value);
      size += value.length;
      for (;;) {
        if (size < 5) break;
        // Joined only when a frame may be whole, so that a large one is not copied with each of its pieces.
        if (held.length > 1 && (held[0]?.length ?? 0) < 5) held = [join(held, size)];
        const head = held[0] as Uint8Array;
        const length = new DataView(head.buffer, head.byteOffset).getUint32(1);
        if (size < 5 + length) break;
        const all = held.length > 1 ? join(held, size) : head;
        yield [(Number(all[0]) & 2) !== 0, text.decode(all.subarray(5, 5 + length))];
        held = [all.subarray(5 + length)];
        size -= 5 + length;
      }
    }
  } finally {
    // Ends the call where the reader has left.
    reader.cancel().catch(() => {});
  }
}

function join(parts: Uint8Array[], size: number): Uint8Array {
  const all = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
