// What a user of a generated client writes: type-checked against it, then run against a real server.
import { captureHold, createTransfer, getBalance, openAccount, reverseTransfer } from "./client/index.js";
import { createClient, createConfig } from "./client/client/index.js";

declare const process: { argv: string[] };
const client = createClient(createConfig({ baseUrl: process.argv[2]! }));
const id = () => crypto.randomUUID();

for (const account of ["alice", "shop"]) await openAccount({ client, body: { account }, throwOnError: true });
await createTransfer({ client, body: { from_account: "@world", to_account: "alice", amount: "100.00", currency: "USD", transaction_id: id() }, throwOnError: true });
const transfer = await createTransfer({ client, body: { from_account: "alice", to_account: "shop", amount: "12.34", currency: "USD", transaction_id: id() }, throwOnError: true });
const hold = await createTransfer({
  client,
  body: { from_account: "alice", to_account: "shop", amount: "20.00", currency: "USD", transaction_id: id(), pending: true, expires_in: 600 },
  throwOnError: true,
});
const capture = await captureHold({ client, path: { id: hold.data.transaction_id }, body: { transaction_id: id(), amount: "15.00" }, throwOnError: true });
await reverseTransfer({ client, path: { id: transfer.data.transaction_id }, body: { transaction_id: id() }, throwOnError: true });
const balance = await getBalance({ client, path: { account: "shop" }, query: { currency: "USD" }, throwOnError: true });
const refused = await createTransfer({ client, body: { from_account: "alice", to_account: "nobody", amount: "1", currency: "USD", transaction_id: id() } });

console.log(
  JSON.stringify({
    transfer: transfer.data.status,
    hold: hold.data.status,
    // Between partitions it may still be under way: an answer is read by its status.
    capture: [capture.data.status, capture.data.status === "in_doubt" ? "" : capture.data.amount],
    balance: balance.data.posted,
    refused: refused.error?.code,
    retryable: refused.error?.retryable,
  }),
);
