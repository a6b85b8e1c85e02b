// nodemailer's pool, the peer of bench/dispatch.py. Prints one line of JSON.
// usage: node nodemailer_pool.cjs MODULES PORT COUNT dkim|raw KEY.pem MESSAGES.json
// dkim: it composes and signs each message from subject, html and text; raw: it hands over finished bytes, unsigned.
const fs = require("fs");
const path = require("path");
const [modules, port, count, way, keyFile, messagesFile] = process.argv.slice(2);
const nodemailer = require(path.join(modules, "nodemailer"));
const version = require(path.join(modules, "nodemailer", "package.json")).version;
const { domain, selector, from, messages } = JSON.parse(fs.readFileSync(messagesFile));
for (const message of messages) message.raw = Buffer.from(message.raw, "latin1");

const transport = nodemailer.createTransport({
  pool: true, host: "127.0.0.1", port: Number(port), secure: false, ignoreTLS: true,
  maxConnections: 4, maxMessages: Infinity,
  dkim: way === "dkim"
    ? { domainName: domain, keySelector: selector, privateKey: fs.readFileSync(keyFile, "utf8") } : undefined,
});

const send = (number) => {
  const message = messages[number % messages.length];
  if (way === "raw") {
    return transport.sendMail({ envelope: { from: message.sender, to: message.to }, raw: message.raw });
  }
  return transport.sendMail({
    from, to: message.to, subject: message.subject, html: message.html, text: message.text,
    headers: {
      "List-Unsubscribe": message.unsubscribe, "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
    },
  });
};

(async () => {
  await Promise.all(Array.from({ length: 20 }, (_, i) => send(i))); // warm up: connections, compiler
  const started = process.hrtime.bigint();
  const before = process.cpuUsage();
  await Promise.all(Array.from({ length: Number(count) }, (_, i) => send(i)));
  const used = process.cpuUsage(before);
  console.log(JSON.stringify({
    version, node: process.version, wall_s: Number(process.hrtime.bigint() - started) / 1e9,
    cpu_s: (used.user + used.system) / 1e6,
  }));
  transport.close();
})();
