// A real nats-server, real servers and a publisher whose events are numbered, on free ports.

import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer, type Socket, connect as tcpConnect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Published } from "./judge.js";

export const PYTHON = process.env.TRIO_ODIN_PYTHON ?? "python";
const EXAMPLE_URL = "wss://prices.example.com/ws";
const START_MS = 20_000;

export const TOKENS = "ADA AVAX BNB BTC DOGE ETH LINK MATIC SOL XRP".split(" ");

/** Why the real server cannot be started here; empty if it can. */
export function whyNoServer(): string {
  const asked = "from trio_odin.demo.nats_server import find_nats_server; print(find_nats_server())";
  try {
    execFileSync(PYTHON, ["-c", asked], { stdio: "pipe" });
    return "";
  } catch (error) {
    return `${PYTHON} has no trio-odin with the extra demo (TRIO_ODIN_PYTHON): ${String(error).split("\n")[0]}`;
  }
}

/** The program in a language on the page for npm, with the address of a server. */
export function example(language: string, url: string): string {
  const readme = readFileSync(join(import.meta.dirname, "../../README.md"), "utf8");
  const code = readme.split(`\n\`\`\`${language}\n`)[1]?.split("\n```\n")[0];
  if (!code?.includes(EXAMPLE_URL)) throw new Error(`README.md has no program in ${language}`);
  return code.replace(EXAMPLE_URL, url);
}

/** Try until it gives something. */
export async function until<T>(what: string, get: () => T | Promise<T>, mostMs = START_MS) {
  const end = Date.now() + mostMs;
  while (true) {
    const value = await get();
    if (value) return value;
    if (Date.now() > end) throw new Error(`${what}: not within ${mostMs} ms`);
    await sleep(20);
  }
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, "close");
  return port;
}

/** Everything that a test starts; `stop` ends it all. */
export class Rig {
  readonly folder = mkdtempSync(join(tmpdir(), "trio-odin-js-"));
  private readonly stops: (() => Promise<void> | void)[] = [];

  onStop(stop: () => Promise<void> | void): void {
    this.stops.push(stop);
  }

  async stop(): Promise<void> {
    for (const stop of this.stops.reverse()) await stop();
    rmSync(this.folder, { recursive: true, force: true });
  }

  async nats(): Promise<Program> {
    const port = await freePort();
    const found = "from trio_odin.demo.nats_server import find_nats_server; print(find_nats_server())";
    const path = execFileSync(PYTHON, ["-c", found], { encoding: "utf8" }).trim();
    const options = ["-a", "127.0.0.1", "-p", String(port), "-js", "-sd", join(this.folder, "jetstream")];
    const program = new Program(path, options, port, {}, () => canConnect(port));
    this.onStop(() => program.kill());
    return program.start();
  }

  async server(nats: Program, settings: Record<string, string> = {}): Promise<Program> {
    const port = await freePort();
    const ready = async () => {
      const answer = await fetch(`http://127.0.0.1:${port}/ready`).catch(() => null);
      return answer?.status === 200;
    };
    const environment = {
      ...{ WS_ADDR: `127.0.0.1:${port}`, NATS_URL: `nats://127.0.0.1:${nats.port}`, LOG_LEVEL: "error" },
      // The load of the machine that runs tests is not what they are about.
      ...{ WS_CPU_REJECT_THRESHOLD: "100", WS_CPU_PAUSE_THRESHOLD: "100", WS_LAG_REJECT_MS: "60000" },
      ...settings,
    };
    const program = new Program(PYTHON, ["-m", "trio_odin", "serve"], port, environment, ready);
    this.onStop(() => program.kill());
    return program.start();
  }

  async publisher(nats: Program, tokens = TOKENS): Promise<Publisher> {
    const publisher = new Publisher(nats.port, tokens);
    this.onStop(() => publisher.stop());
    await until("the publisher's connection", () => publisher.isConnected);
    return publisher;
  }

  /** A TCP relay to a port that can stop forwarding without closing anything. */
  async relay(to: number): Promise<Relay> {
    const relay = new Relay(to);
    this.onStop(() => relay.close());
    return relay.listen();
  }
}

async function canConnect(port: number): Promise<boolean> {
  const socket = tcpConnect(port, "127.0.0.1");
  try {
    await once(socket, "connect");
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

/** A program that is started, ended and started again at the same port. */
export class Program {
  private child: ChildProcess | null = null;

  constructor(
    private readonly path: string,
    private readonly options: string[],
    readonly port: number,
    private readonly environment: Record<string, string>,
    private readonly isReady: () => Promise<boolean>,
  ) {}

  get url(): string {
    return `ws://127.0.0.1:${this.port}/ws`;
  }

  async start(): Promise<this> {
    const env = { ...process.env, ...this.environment };
    const child = spawn(this.path, this.options, { env, stdio: ["ignore", "ignore", "ignore"] });
    this.child = child;
    await until(`${this.path} ${this.options.join(" ")}`, () => {
      if (child.exitCode !== null) throw new Error(`it has ended with ${child.exitCode}`);
      return this.isReady();
    });
    return this;
  }

  signal(name: NodeJS.Signals): void {
    this.child?.kill(name);
  }

  /** Send a signal, and wait until it has ended. */
  async end(name: NodeJS.Signals): Promise<void> {
    const { child } = this;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    child.kill(name);
    await once(child, "exit");
  }

  kill(): Promise<void> {
    return this.end("SIGKILL");
  }
}

/**
 * Publishes `{price, n, sentAt}` to each token's `trade` in turn, and keeps what JetStream has confirmed.
 * It speaks NATS itself: a connection, publications that ask for a confirmation, and pongs.
 */
export class Publisher {
  readonly published: Published[] = [];
  isConnected = false;
  private readonly numbers = new Map<string, number>();
  private readonly byReply = new Map<string, Published>();
  private socket: Socket | null = null;
  private timer: ReturnType<typeof setInterval> | undefined;
  private isStopped = false;
  private turn = 0;

  constructor(
    private readonly port: number,
    private readonly tokens: readonly string[],
  ) {
    this.connect();
  }

  private connect(): void {
    if (this.isStopped) return;
    const socket = tcpConnect(this.port, "127.0.0.1");
    this.socket = socket;
    let text = "";
    socket.on("connect", () => {
      socket.write('CONNECT {"verbose":false,"name":"test"}\r\nSUB _acks.* 1\r\nPING\r\n');
    });
    socket.on("data", (data) => {
      text = this.read(text + data.toString("latin1"));
    });
    socket.on("error", () => {});
    socket.on("close", () => {
      this.isConnected = false;
      setTimeout(() => this.connect(), 100);
    });
  }

  private read(text: string): string {
    while (true) {
      const end = text.indexOf("\r\n");
      if (end < 0) return text;
      const [verb, subject = "", , size] = text.slice(0, end).split(" ");
      if (verb !== "MSG") {
        if (verb === "PING") this.socket?.write("PONG\r\n");
        if (verb === "PONG") this.isConnected = true;
        text = text.slice(end + 2);
        continue;
      }
      const after = end + 2 + Number(size) + 2;
      if (text.length < after) return text;
      const { stream, seq } = JSON.parse(text.slice(end + 2, after - 2));
      const published = this.byReply.get(subject);
      if (stream && published) published.offset = seq;
      text = text.slice(after);
    }
  }

  /** Publish one event; null if there is no connection. */
  publish(channel: string): Published | null {
    if (!this.isConnected) return null;
    const n = (this.numbers.get(channel) ?? 0) + 1;
    this.numbers.set(channel, n);
    const published: Published = { channel, n, at: Date.now() };
    const reply = `_acks.${this.published.push(published)}`;
    this.byReply.set(reply, published);
    const payload = JSON.stringify({ price: n, n, sentAt: published.at });
    this.socket?.write(`PUB odin.token.${channel} ${reply} ${payload.length}\r\n${payload}\r\n`);
    return published;
  }

  /** Publish so many events a second, over all tokens in turn, until `pause`. */
  run(perSecond: number): void {
    const next = () => this.publish(`${this.tokens[this.turn++ % this.tokens.length]}.trade`);
    this.timer = setInterval(next, 1_000 / perSecond);
  }

  pause(): void {
    clearInterval(this.timer);
  }

  stop(): void {
    this.pause();
    this.isStopped = true;
    this.socket?.destroy();
  }
}

export class Relay {
  port = 0;
  private isDead = false;
  private readonly pairs = new Set<Socket>();
  private readonly server = createServer((client) => {
    const server = tcpConnect(this.to, "127.0.0.1");
    for (const [from, other] of [
      [client, server],
      [server, client],
    ] as const) {
      this.pairs.add(from);
      from.on("data", (data) => other.write(data));
      from.on("error", () => {});
      from.on("close", () => {
        this.pairs.delete(from);
        if (!this.isDead) other.destroy();
      });
      if (this.isDead) from.pause();
    }
  });

  constructor(private readonly to: number) {}

  get url(): string {
    return `ws://127.0.0.1:${this.port}/ws`;
  }

  async listen(): Promise<this> {
    this.server.listen(0, "127.0.0.1");
    await once(this.server, "listening");
    this.port = (this.server.address() as { port: number }).port;
    return this;
  }

  /** Forward nothing, and close nothing. */
  die(): void {
    this.isDead = true;
    for (const socket of this.pairs) socket.pause();
  }

  /** Go on with the connections that there are; the others have been given up. */
  live(): void {
    this.isDead = false;
    for (const socket of this.pairs) socket.resume();
  }

  /** Close all connections that there are. */
  cut(): void {
    for (const socket of this.pairs) socket.destroy();
  }

  close(): void {
    this.cut();
    this.server.close();
  }
}
