// Chromium through its own protocol: a page can be hidden and frozen for real.
//
// Playwright and Puppeteer tell each page that it is looked at, so neither is possible with them.

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { accessSync, constants, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { WebSocket } from "ws";
import { until } from "../test/server/rig.js";

const NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

type Params = Record<string, unknown>;

/** The program; undefined if there is none. CHROMIUM names it, or it is on PATH. */
export function findChromium(): string | undefined {
  const folders = (process.env.PATH ?? "").split(delimiter);
  const paths = folders.flatMap((folder) => NAMES.map((name) => join(folder, name)));
  return [process.env.CHROMIUM ?? "", ...paths].find((path) => {
    try {
      accessSync(path, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

export class Chromium {
  private readonly folder = mkdtempSync(join(tmpdir(), "trio-odin-chromium-"));
  private readonly answers = new Map<number, [(result: never) => void, (error: Error) => void]>();
  private ids = 0;
  private child!: ChildProcess;
  private socket!: WebSocket;
  version = "";

  async start(path: string): Promise<this> {
    const options = ["--headless=new", "--remote-debugging-port=0", `--user-data-dir=${this.folder}`];
    options.push("--no-first-run", "--disable-gpu", "--disable-dev-shm-usage");
    // Root has no sandbox.
    if (process.getuid?.() === 0) options.push("--no-sandbox");
    this.child = spawn(path, [...options, "about:blank"], { stdio: ["ignore", "ignore", "pipe"] });
    let log = "";
    this.child.stderr?.on("data", (data) => {
      log += data;
    });
    const address = await until("Chromium", () => /DevTools listening on (ws:\S+)/.exec(log)?.[1]);
    this.socket = new WebSocket(address as string);
    await once(this.socket, "open");
    this.socket.on("message", (data) => {
      const { id, result, error } = JSON.parse(String(data));
      const [resolve, reject] = this.answers.get(id) ?? [];
      this.answers.delete(id);
      if (error) reject?.(new Error(JSON.stringify(error)));
      else resolve?.(result as never);
    });
    this.version = (await this.send<{ product: string }>("Browser.getVersion")).product;
    return this;
  }

  send<Result = unknown>(method: string, params: Params = {}, sessionId?: string): Promise<Result> {
    return new Promise<Result>((resolve, reject) => {
      this.answers.set(++this.ids, [resolve, reject]);
      this.socket.send(JSON.stringify({ id: this.ids, method, params, sessionId }));
    });
  }

  /** A page in a window of its own. */
  async open(url: string): Promise<Page> {
    const created = await this.send<{ targetId: string }>("Target.createTarget", { url, newWindow: true });
    const how = { targetId: created.targetId, flatten: true };
    const { sessionId } = await this.send<{ sessionId: string }>("Target.attachToTarget", how);
    return new Page(this, created.targetId, sessionId);
  }

  async stop(): Promise<void> {
    this.socket.close();
    this.child.kill();
    await once(this.child, "exit");
    rmSync(this.folder, { recursive: true, force: true, maxRetries: 10 });
  }
}

export class Page {
  constructor(
    private readonly browser: Chromium,
    private readonly targetId: string,
    private readonly sessionId: string,
  ) {}

  private send<Result = unknown>(method: string, params: Params = {}): Promise<Result> {
    return this.browser.send<Result>(method, params, this.sessionId);
  }

  /** The value of an expression in JavaScript, or of its promise. */
  async evaluate<Value>(expression: string): Promise<Value> {
    const how = { expression, awaitPromise: true, returnByValue: true };
    const answer = await this.send<{ result: { value: Value }; exceptionDetails?: object }>(
      "Runtime.evaluate",
      how,
    );
    if (answer.exceptionDetails) throw new Error(JSON.stringify(answer.exceptionDetails));
    return answer.result.value;
  }

  /** Minimize its window, or show it again. */
  async hide(isHidden: boolean): Promise<void> {
    const { targetId } = this;
    const { windowId } = await this.send<{ windowId: number }>("Browser.getWindowForTarget", { targetId });
    const bounds = { windowState: isHidden ? "minimized" : "normal" };
    await this.send("Browser.setWindowBounds", { windowId, bounds });
  }

  async freeze(): Promise<void> {
    await this.send("Page.setWebLifecycleState", { state: "frozen" });
  }

  async resume(): Promise<void> {
    await this.send("Page.setWebLifecycleState", { state: "active" });
    await this.hide(true);
    await this.hide(false);
  }

  async setOffline(offline: boolean): Promise<void> {
    const throughput = { latency: 0, downloadThroughput: -1, uploadThroughput: -1 };
    await this.send("Network.emulateNetworkConditions", { offline, ...throughput });
  }

  async close(): Promise<void> {
    await this.browser.send("Target.closeTarget", { targetId: this.targetId });
  }
}
