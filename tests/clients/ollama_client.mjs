// Ollama's own JavaScript client through the tunnel, beside the same client without it.
//
// ADIT_URL leads to the stand-in through the tunnel, ADIT_DIRECT leads straight to it, and ADIT_TEST_NODE_PATH is
// the node_modules folder that has the package `ollama`.

import assert from 'node:assert/strict'
import { cancels, direct, key, model, packageOf, parts, same, through as url, waitFor } from './standin.mjs'

const { Ollama } = packageOf('ollama')

// For a listener that wants a key.
const headers = key ? { Authorization: `Bearer ${key}` } : {}
const TOKENS = 8
const SEED = 20260101

const prompt = 'Why is the sky blue?'
const messages = [{ role: 'user', content: prompt }]
const options = { seed: SEED, num_predict: TOKENS }
// Without end for any purpose; an aborted request must not be over before it is aborted.
const forever = { seed: SEED, num_predict: 1_000_000_000 }

const through = new Ollama({ host: url, headers })
const given = await answers(through)
const wanted = await answers(new Ollama({ host: direct }))
for (const what of Object.keys(wanted)) {
  same(what, given[what], wanted[what])
}
const generated = given['generate, streamed'].map((part) => part.response)
const said = given['chat, streamed'].map((part) => part.message.content)
same('generate comes token by token', generated.length, TOKENS + 1)
same('chat comes token by token', said.length, TOKENS + 1)
same('generate says the same streamed and whole', generated.join(''), given.generate.response)
same('chat says the same streamed and whole', said.join(''), given.chat.message.content)

await cancels('generate, aborted in the middle', async () => {
  const stream = await through.generate({ model, prompt, options: forever, stream: true })
  await assert.rejects(readAndAbort(stream), { name: 'AbortError' })
})
await cancels('chat, aborted before its answer', async (before) => {
  const controller = new AbortController()
  const fetchUntil = (url, init) => fetch(url, { ...init, signal: controller.signal })
  const request = new Ollama({ host: url, headers, fetch: fetchUntil }).chat({ model, messages, options: forever })
  const rejected = assert.rejects(request, { name: 'AbortError' })
  await waitFor('the request reaches the stand-in', (now) => now.started > before.started)
  controller.abort()
  await rejected
})
same('chat, after the aborts', await through.chat({ model, messages, options }), given.chat)

async function answers(client) {
  return {
    generate: await client.generate({ model, prompt, options }),
    'generate, streamed': await parts(client.generate({ model, prompt, options, stream: true })),
    chat: await client.chat({ model, messages, options }),
    'chat, streamed': await parts(client.chat({ model, messages, options, stream: true })),
    list: await client.list(),
    show: await client.show({ model }),
    embed: await client.embed({ model, input: ['one', 'two'] }),
    'pull, streamed': await parts(client.pull({ model, stream: true })),
    'unknown model': await client.generate({ model: 'no such model', prompt }).catch((error) => ({
      status: error.status_code,
      message: error.message,
    })),
  }
}

async function readAndAbort(stream) {
  let count = 0
  for await (const _ of stream) {
    count += 1
    if (count === 3) {
      through.abort()
    }
  }
}
