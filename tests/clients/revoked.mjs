// A JavaScript SDK whose key is revoked in the middle of an answer. The argument is the name of its package.
//
// Writes `begun` when a part of an answer without an end has come, and `cut` when the SDK reports that the answer is
// broken. Then asks once more, and fails unless the key is refused.

import { key, model, packageOf, parts, same, through } from './standin.mjs'

const TOKENS = 8
const ENDLESS = 1_000_000_000
const messages = [{ role: 'user', content: 'Why is the sky blue?' }]

const ask = { openai: withOpenai, ollama: withOllama }[process.argv[2]]()

same('a whole answer has its tokens', (await parts(ask(TOKENS))).length > TOKENS, true)

const cut = await readToEnd().then(
  () => undefined,
  (error) => error,
)
if (cut === undefined) {
  throw new Error('the broken answer looks like a whole one')
}
console.log(`cut: ${cut}`)

const refused = await parts(ask(TOKENS)).catch((error) => error)
same('the next request is refused', refused.status ?? refused.status_code ?? `${refused}`, 401)

async function readToEnd() {
  let count = 0
  for await (const _ of await ask(ENDLESS)) {
    count += 1
    if (count === 3) {
      console.log('begun')
    }
  }
}

function withOpenai() {
  const { OpenAI } = packageOf('openai')
  // A retry would hide the cut.
  const client = new OpenAI({ baseURL: `${through}/v1`, apiKey: key, maxRetries: 0, timeout: 60_000 })
  return (tokens) => client.chat.completions.create({ model, messages, max_tokens: tokens, stream: true })
}

function withOllama() {
  const { Ollama } = packageOf('ollama')
  const client = new Ollama({ host: through, headers: { Authorization: `Bearer ${key}` } })
  return (tokens) => client.chat({ model, messages, options: { num_predict: tokens }, stream: true })
}
