/** post asks the backend of this page. */
export async function post<T>(path: string, body: object, signal?: AbortSignal): Promise<T> {
  const response = await fetch(path, { method: "POST", body: JSON.stringify(body), signal: signal ?? null });
  const answer = (await response.json()) as T & { error?: string };
  if (!response.ok) throw new Error(answer.error ?? `${path}: ${response.status}`);
  return answer;
}

/** act is post for what has an idempotency key: it is sent again until the network is back, and happens once. */
export async function act<T>(path: string, body: { key: string }, signal: AbortSignal): Promise<T> {
  for (;;) {
    try {
      return await post<T>(path, body, signal);
    } catch (e) {
      if (!(e instanceof TypeError)) throw e; // fetch has no other error where there was no answer
      await new Promise((done) => setTimeout(done, 500));
    }
  }
}
