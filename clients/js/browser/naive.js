// What one writes first: it does what the documentation of WebSocket says, and connects again.

export function naive(url, names, show) {
  const client = { isLive: false };
  const dial = () => {
    const socket = new WebSocket(url);
    socket.onopen = () => {
      client.isLive = true;
      socket.send(JSON.stringify({ type: "subscribe", channels: names }));
    };
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === "price:update") show(message.channel, message.data);
    };
    socket.onclose = () => {
      client.isLive = false;
      setTimeout(dial, 1_000);
    };
  };
  dial();
  return client;
}
