// OpenAI's client for JavaScript with the service: `node openai_client.mjs URL KEY MODEL PICTURE` prints what it got, as JSON.

import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import OpenAI from "openai";

const [url, key, model, picture] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });

const ask = (messages, fields) =>
  client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 16, ...fields });
const hello = [{ role: "user", content: "Hello?" }];

const answer = await ask(hello);
let stream = "";
let usage;
for await (const event of await ask(hello, { stream: true, stream_options: { include_usage: true } })) {
  stream += event.choices[0]?.delta.content ?? "";
  usage = event.usage;
}
const data = (await readFile(picture)).toString("base64");
const question = {
  role: "user",
  content: [
    { type: "image_url", image_url: { url: `data:image/png;base64,${data}` } },
    { type: "text", text: "Which shape is it?" },
  ],
};
const seen = await ask([question]);
const more = await ask([question, seen.choices[0].message, { role: "user", content: "And its colour?" }]);
const image = await client.images.generate({ model, prompt: "a red circle" });
let job = await client.videos.create({ model, prompt: "a red circle moves right", seconds: "4" });
while (["queued", "in_progress"].includes(job.status)) {
  await sleep(200);
  job = await client.videos.retrieve(job.id);
}
const video = await client.videos.downloadContent(job.id);
const refusal = await ask(hello, { temperature: 3 }).catch((error) => error);

console.log(
  JSON.stringify({
    chat: answer.choices[0].message.content,
    chat_tokens: answer.usage.prompt_tokens,
    stream,
    stream_tokens: usage.prompt_tokens,
    picture: seen.choices[0].message.content,
    picture_tokens: seen.usage.prompt_tokens,
    more: more.choices[0].message.content,
    more_tokens: more.usage.prompt_tokens,
    image: image.data[0].b64_json,
    video: Buffer.from(await video.arrayBuffer()).toString("base64"),
    refusal: { status: refusal.status, message: refusal.message },
  }),
);
