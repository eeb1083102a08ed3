// AI SDK with the service: `node ai_client.mjs URL KEY MODEL PICTURE` prints what it got, as JSON.

import { readFile } from "node:fs/promises";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateImage, generateText, streamText } from "ai";

const [url, key, name, picture] = process.argv.slice(2);
const service = createOpenAICompatible({ name: "service", baseURL: `${url}/v1`, apiKey: key, includeUsage: true });
const settings = { model: service(name), temperature: 0, maxOutputTokens: 16, maxRetries: 0 };

const answer = await generateText({ ...settings, prompt: "Hello?" });
const streamed = streamText({ ...settings, prompt: "Hello?" });
const question = {
  role: "user",
  content: [
    { type: "image", image: await readFile(picture) },
    { type: "text", text: "Which shape is it?" },
  ],
};
const seen = await generateText({ ...settings, messages: [question] });
const more = await generateText({
  ...settings,
  messages: [question, ...seen.response.messages, { role: "user", content: "And its colour?" }],
});
const { image } = await generateImage({ model: service.imageModel(name), prompt: "a red circle", maxRetries: 0 });
const refusal = await generateText({ ...settings, temperature: 3, prompt: "Hello?" }).catch((error) => error);

console.log(
  JSON.stringify({
    chat: answer.text,
    chat_tokens: answer.usage.inputTokens,
    stream: await streamed.text,
    stream_tokens: (await streamed.usage).inputTokens,
    picture: seen.text,
    picture_tokens: seen.usage.inputTokens,
    more: more.text,
    more_tokens: more.usage.inputTokens,
    image: image.base64,
    refusal: { status: refusal.statusCode, message: refusal.message },
  }),
);
