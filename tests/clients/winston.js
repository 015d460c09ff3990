// winston with its own HTTP transport; one request per record.
const winston = require("winston");

const [address, total] = [process.argv[2], Number(process.argv[3])];
const [host, port] = address.split(":");
const transport = new winston.transports.Http({ host, port: Number(port), path: "/ingest?service=winston" });
const logger = winston.createLogger({ level: "info", transports: [transport] });
let acknowledged = 0;
let number = 0;
transport.on("logged", ({ message }) => {
  acknowledged += 1;
  console.log(message);
});
for (const failed of ["warn", "error"]) {
  transport.on(failed, () => {});
}
logger.on("error", () => {});
const timer = setInterval(() => {
  if (acknowledged >= total) {
    clearInterval(timer);
    process.exit(0);
  }
  logger.warn(`record-${number}`, { number });
  number += 1;
}, 3);
