/** post asks the backend of this page. */
export async function post<T>(path: string, body: object, signal?: AbortSignal): Promise<T> {
  const response = await fetch(path, { method: "POST", body: JSON.stringify(body), signal: signal ?? null });
  const answer = (await response.json()) as T & { error?: string };
  if (!response.ok) throw new Error(answer.error ?? `${path}: ${response.status}`);
  return answer;
}
