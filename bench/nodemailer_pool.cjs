// nodemailer's pool with DKIM: the peer of bench/dispatch.py. Prints one line of JSON.
// usage: node nodemailer_pool.cjs MODULES PORT COUNT KEY.pem MESSAGE.json
const fs = require("fs");
const path = require("path");
const [modules, port, count, keyFile, messageFile] = process.argv.slice(2);
const nodemailer = require(path.join(modules, "nodemailer"));
const version = require(path.join(modules, "nodemailer", "package.json")).version;
const message = JSON.parse(fs.readFileSync(messageFile));

const transport = nodemailer.createTransport({
  pool: true, host: "127.0.0.1", port: Number(port), secure: false, ignoreTLS: true,
  maxConnections: 4, maxMessages: Infinity,
  dkim: { domainName: message.domain, keySelector: message.selector, privateKey: fs.readFileSync(keyFile, "utf8") },
});

const send = (number) => transport.sendMail({
  from: message.from, to: `person${number}@other.example`, subject: message.subject,
  html: message.html, text: message.text,
  headers: {
    "List-Unsubscribe": "<http://127.0.0.1:8025/u/x>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
  },
});

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
