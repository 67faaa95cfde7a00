// OpenAI's JavaScript client with a key, beside the same client straight at the stand-in.
//
// ADIT_URL leads to the stand-in through Adit, ADIT_DIRECT leads straight to it, and ADIT_TEST_NODE_PATH is the
// node_modules folder that has the package `openai`.

import assert from 'node:assert/strict'
import { cancels, direct, key, model, packageOf, parts, same, through } from './standin.mjs'

const { OpenAI } = packageOf('openai')

const TOKENS = 8
const messages = [{ role: 'user', content: 'Why is the sky blue?' }]
const chat = { model, messages, seed: 20260101, max_tokens: TOKENS }
const streamed = { ...chat, stream: true, stream_options: { include_usage: true } }

// A retry would hide what the way broke.
const client = (url) => new OpenAI({ baseURL: `${url}/v1`, apiKey: key ?? 'x', maxRetries: 0, timeout: 60_000 })

const ours = client(through)
const given = await answers(ours)
const wanted = await answers(client(direct))
for (const what of Object.keys(wanted)) {
  same(what, given[what], wanted[what])
}
const chunks = given['chat, streamed']
const said = chunks.slice(0, -1).map((chunk) => chunk.choices[0].delta.content)
same('chat comes token by token', said.length, TOKENS + 1)
same('chat says the same streamed and whole', said.join(''), given.chat.choices[0].message.content)
same('chat counts its tokens', chunks.at(-1).usage.completion_tokens, TOKENS)

await cancels('chat, left in the middle', async () => {
  const stream = await ours.chat.completions.create({ ...chat, max_tokens: 1_000_000_000, stream: true })
  let count = 0
  for await (const _ of stream) {
    count += 1
    if (count === 3) {
      break
    }
  }
})
same('chat, after the abort', await plain(ours.chat.completions.create(chat)), given.chat)

async function answers(client) {
  const refused = await client.chat.completions.create({ model: 'no such model', messages }).catch((error) => error)
  assert(refused instanceof OpenAI.NotFoundError, `${refused}`)
  return {
    chat: await plain(client.chat.completions.create(chat)),
    'chat, streamed': await parts(client.chat.completions.create(streamed)),
    completion: await plain(client.completions.create({ model, prompt: 'Why?', seed: 1, max_tokens: TOKENS })),
    embeddings: await plain(client.embeddings.create({ model, input: ['one', 'two'] })),
    models: await parts(client.models.list()),
    'unknown model': { status: refused.status, error: refused.error },
  }
}

// An answer without what the client adds to it.
async function plain(answer) {
  return JSON.parse(JSON.stringify(await answer))
}
