// Ollama's own JavaScript client through the tunnel, beside the same client without it.
//
// ADIT_URL leads to the stand-in through the tunnel, ADIT_DIRECT leads straight to it, and ADIT_TEST_NODE_PATH is
// the node_modules folder that has the package `ollama`.

import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import { join } from 'node:path'

// Imports look beside this file only, and the package is elsewhere.
const modules = process.env.ADIT_TEST_NODE_PATH
const { Ollama } = createRequire(modules ? join(modules, 'x.js') : import.meta.url)('ollama')

const TUNNEL = process.env.ADIT_URL
const DIRECT = process.env.ADIT_DIRECT
// For a listener that wants a key.
const headers = process.env.ADIT_KEY ? { Authorization: `Bearer ${process.env.ADIT_KEY}` } : {}
const TOKENS = 8
const SEED = 20260101
const SOON = 5000

// A client that hangs is a failure to see.
setTimeout(() => {
  console.error('not done within 120 s')
  process.exit(1)
}, 120_000).unref()

const { models } = await get('/api/tags')
const model = models[0].name
const prompt = 'Why is the sky blue?'
const messages = [{ role: 'user', content: prompt }]
const options = { seed: SEED, num_predict: TOKENS }
// Without end for any purpose; an aborted request must not be over before it is aborted.
const forever = { seed: SEED, num_predict: 1_000_000_000 }

const through = new Ollama({ host: TUNNEL, headers })
const given = await answers(through)
const wanted = await answers(new Ollama({ host: DIRECT }))
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
  const request = new Ollama({ host: TUNNEL, headers, fetch: fetchUntil }).chat({ model, messages, options: forever })
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

async function parts(stream) {
  const all = []
  for await (const part of await stream) {
    all.push(part)
  }
  return all
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

// Fails unless `act` leaves one more cancelled generation behind; gives it the counters from before.
async function cancels(what, act) {
  const before = await get('/test/counters')
  await act(before)
  const gone = before.cancelled + 1
  const over = (now) => now.cancelled >= gone && now.running === before.running
  const after = await waitFor(what, over)
  same(what, [after.started, after.cancelled], [before.started + 1, gone])
}

async function waitFor(what, holds) {
  const end = Date.now() + SOON
  for (;;) {
    const now = await get('/test/counters')
    if (holds(now)) {
      return now
    }
    if (Date.now() > end) {
      throw new Error(`${what}: not within ${SOON} ms; the stand-in counts ${JSON.stringify(now)}`)
    }
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}

// What the stand-in answers, asked directly.
async function get(path) {
  const answer = await fetch(DIRECT + path)
  return answer.json()
}

function same(what, got, want) {
  assert.deepEqual(got, want, `${what}: differs\n   got ${JSON.stringify(got)}\n  want ${JSON.stringify(want)}`)
  console.log(`ok  ${what}`)
}
