// Peer: uWebSockets (C++) by its Node binding, with its own topics. The fastest publisher known.
//
//   node uws.mjs --nats nats://HOST:PORT --addr HOST:PORT
//
// Needs the npm packages @based/uws and nats in the folder that NODE_PATH names. As the other peers:
// subscribe, its acknowledgement, a text frame for each delivery, and nothing else.
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const uws = require("@based/uws");
const nats = require("nats");

const MAX_WAITING_BYTES = 1024 * 1024; // that of an outbox of trio-odin
const LISTEN_EXCLUSIVELY = 1;
const decoder = new TextDecoder();
const option = (name) => process.argv[process.argv.indexOf(name) + 1];
const servers = option("--nats");
const [host, port] = option("--addr").split(":");

const app = uws.App().ws("/ws", {
  compression: uws.DISABLED,
  maxBackpressure: MAX_WAITING_BYTES,
  sendPingsAutomatically: true,
  message(socket, frame) {
    const command = JSON.parse(decoder.decode(frame));
    if (command.type === "subscribe") {
      for (const channel of command.channels) socket.subscribe(channel);
      socket.send(JSON.stringify({ type: "subscription_ack", subscribed: command.channels }));
    }
  },
});

const feed = await nats.connect({ servers });
feed.subscribe("odin.token.>", {
  callback(_, { subject, data }) {
    const channel = subject.slice("odin.token.".length);
    app.publish(channel, `{"channel":"${channel}","data":${decoder.decode(data)}}`);
  },
});
await feed.flush();
app.listen(host, Number(port), LISTEN_EXCLUSIVELY, (socket) => {
  if (!socket) process.exit(1);
  console.log(`listening on ${host}:${uws.us_socket_local_port(socket)}`);
});
process.on("SIGTERM", () => process.exit(0));
