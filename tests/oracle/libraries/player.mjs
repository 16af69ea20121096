// Plays a library: subscribes as it is asked to, and reports each thing that it gets as a line.
// It runs in Node and in a browser.

export function play(connect, config, report) {
  const feed = connect(config.urls, config.options);
  const say = (kind, content) => report(JSON.stringify({ kind, at: Date.now(), ...content }));
  feed.on("state", ({ name, cause }) => say("state", { name, cause }));
  config.subscriptions.forEach(({ names, everyMs }, number) => {
    const one = feed.subscribe(names, { everyMs });
    one.on("event", ({ channel, data, offset, epoch, skipped, isSnapshot, unixMs }) =>
      say("event", { number, channel, n: data.n, offset, epoch, skipped, isSnapshot, unixMs }),
    );
    one.on("gap", ({ channels, missed, reason }) => say("gap", { number, channels, missed, reason }));
    one.on("refused", ({ channel, code }) => say("refused", { number, channel, code }));
  });
  return feed;
}
