// A proxy that breaks. The path begins with a name and with what the calls under that name meet, one after the other; those that
// come later reach the server undisturbed: /p1/before,after,cut17/holdfast.….
import http from "node:http";
import type { AddressInfo } from "node:net";

const cors = { "Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "*" };

export interface Chaos {
  url: string;
  /** How many calls were broken. */
  count: { [action: string]: number };
  close(): void;
}

export async function chaos(api: string): Promise<Chaos> {
  const met = new Map<string, number>();
  const count: { [action: string]: number } = {};
  const agent = new http.Agent({ keepAlive: true, maxSockets: 64 });
  const server = http.createServer((req, res) => {
    const [, name = "", actions = "", ...rest] = (req.url ?? "").split("/");
    let action = "ok";
    if (req.method === "POST") {
      const n = met.get(name) ?? 0;
      met.set(name, n + 1);
      action = actions.split(",")[n] || "ok";
      if (action !== "ok") {
        const kind = action.replace(/[\d.]+$/, "").split("-")[0] as string;
        count[kind] = (count[kind] ?? 0) + 1;
      }
    }
    const chunks: Buffer[] = [];
    req.on("data", (c) => chunks.push(c));
    req.on("error", () => {});
    req.on("end", () => void meet(action, req, res, `/${rest.join("/")}`, Buffer.concat(chunks)));
  });

  function forward(req: http.IncomingMessage, path: string, body: Buffer): Promise<http.IncomingMessage> {
    return new Promise((done, failed) => {
      const up = http.request(
        api + path,
        { method: req.method, headers: { ...req.headers, host: new URL(api).host }, agent },
        done,
      );
      up.on("error", failed);
      up.end(body);
    });
  }

  async function whole(answer: http.IncomingMessage): Promise<Buffer> {
    const chunks: Buffer[] = [];
    for await (const c of answer) chunks.push(c as Buffer);
    return Buffer.concat(chunks);
  }

  async function meet(
    action: string,
    req: http.IncomingMessage,
    res: http.ServerResponse,
    path: string,
    body: Buffer,
  ): Promise<void> {
    const [, kind = "", n = ""] = /^([a-z]+)(\d*)/.exec(action) ?? [];
    const cut = () => void req.socket.destroy();
    try {
      if (action === "hole") return;
      if (action === "before") return cut();
      if (/^50\d$/.test(action))
        return void res.writeHead(Number(action), { "Content-Type": "text/html", ...cors }).end("<h1>away</h1>");
      if (action === "404") return void res.writeHead(404, { "Content-Type": "text/plain", ...cors }).end("no such page");
      if (action === "html") return void res.writeHead(200, { "Content-Type": "text/html", ...cors }).end("<h1>welcome</h1>");
      if (action === "login") return void res.writeHead(302, { Location: "/login", ...cors }).end();
      if (action.startsWith("problem-")) {
        const [, reason, retry, after] = action.split("-");
        const debug = { reason, retry: `RETRY_${retry}`, ...(Number(after) ? { retryAfter: `${after}s` } : {}) };
        const text = JSON.stringify({
          code: "unavailable",
          message: "as asked",
          details: [{ type: "holdfast.error.v1.Problem", debug }],
        });
        return void res.writeHead(503, { "Content-Type": "application/json", ...cors }).end(text);
      }
      if (kind === "slow") await new Promise((done) => setTimeout(done, Number(n)));
      if (kind === "twice") await Promise.all([forward(req, path, body).then(whole), 0]);
      const answer = await forward(req, path, body);
      if (kind === "stream" || kind === "mute") {
        res.writeHead(answer.statusCode ?? 500, answer.headers);
        let left = n === "" ? Number.POSITIVE_INFINITY : Number(n); // mute: all of the first piece
        res.on("close", () => answer.destroy());
        // What comes by itself is over soon; the next would be a heartbeat. A muted path says nothing more, and is not cut.
        const over = kind === "mute" ? undefined : setTimeout(cut, 400);
        for await (const chunk of answer) {
          const part = (chunk as Buffer).subarray(0, left);
          left -= part.length;
          await new Promise((done) => res.write(part, done));
          if (left <= 0 || action === "mute") break;
        }
        clearTimeout(over);
        if (kind === "mute") return;
        cut();
        return;
      }
      if (action === "after") return void (await whole(answer), cut());
      if (action === "hang") return void (await whole(answer));
      if (kind === "head") {
        const all = await whole(answer);
        const lines = [`HTTP/1.1 ${answer.statusCode} OK`];
        for (let i = 0; i < answer.rawHeaders.length; i += 2) lines.push(`${answer.rawHeaders[i]}: ${answer.rawHeaders[i + 1]}`);
        const head = Buffer.from(`${lines.join("\r\n")}\r\n\r\n`);
        // Node does not see that this was an answer, and would hold back those to later calls on the same connection.
        if (Number(n) >= head.length) return void req.socket.end(Buffer.concat([head, all]));
        req.socket.write(head.subarray(0, Number(n)), cut);
        return;
      }
      if (kind === "cut") {
        const all = await whole(answer);
        res.writeHead(answer.statusCode ?? 500, { ...answer.headers, "content-length": String(all.length) });
        if (Number(n) >= all.length) return void res.end(all);
        res.flushHeaders();
        res.write(all.subarray(0, Number(n)), cut);
        return;
      }
      res.writeHead(answer.statusCode ?? 500, answer.headers);
      answer.pipe(res);
      res.on("close", () => answer.destroy());
    } catch {
      cut();
    }
  }

  server.on("clientError", (_, socket) => socket.destroy());
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    count,
    close() {
      server.closeAllConnections();
      server.close();
      agent.destroy();
    },
  };
}
