// chat.mjs BASE_URL MODE - OpenAI's own Node client against this server; see
// chat.py, of which this is the counterpart.  OPENAI_DIR is the directory
// whose node_modules has the client.

import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const require = createRequire(`${process.env.OPENAI_DIR}/`);
const { default: OpenAI } = await import(pathToFileURL(require.resolve('openai')));

const [base, mode] = process.argv.slice(2);
const mock = mode === 'mock';
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: 'none',
                            maxRetries: 0, timeout: 120e3 });

const ask = mock ? 'mock reasoning=3 tokens=4' : 'What is 347 + 285?';
const answer = mock ? 'w0 w1 w2 w3' : '632';
const thought = mock ? 'r0 r1 r2' : '347';
const long = mock ? 'mock tokens=5000 delay_ms=20' : 'What is 999 - 111?';

const name = (await client.models.list()).data[0].id;

const chat = (content = ask, more = {}) => client.chat.completions.create({
    model: name, messages: [{ role: 'user', content }], temperature: 0, ...more,
});

async function check(what, call) {
    try {
        const r = await call();
        if (r === undefined || r === true) console.log(`ok - ${what}`);
        else console.log(`not ok - ${what}: got ${JSON.stringify(r)}`);
    } catch (e) {
        console.log(`not ok - ${what}: ${e.constructor.name} ${e.message}`);
    }
}

function raises(kind, call, attributes = {}) {
    return async () => {
        try {
            await call();
        } catch (e) {
            if (e.constructor !== kind) return `${e.constructor.name}: ${e.message}`;
            for (const [k, v] of Object.entries(attributes)) {
                if (e[k] !== v) return `${k} is ${e[k]}`;
            }
            return true;
        }
        return 'no error';
    };
}

async function collect(stream) {
    const parts = [];
    for await (const part of stream) parts.push(part);
    return parts;
}

await check('list models', async () => {
    const m = (await client.models.list()).data;
    return m.length === 1 && m[0].object === 'model' && m[0].created > 0;
});
await check('retrieve a model', async () => (
    (await client.models.retrieve(name)).id === name));
await check('a model that is not there is NotFoundError', raises(
    OpenAI.NotFoundError, () => client.models.retrieve('no-such-model'),
    { status: 404 }));

await check('a chat', async () => {
    const r = await chat();
    const { message, finish_reason: finish } = r.choices[0];
    return (r.object === 'chat.completion' && message.content.includes(answer)
            && message.reasoning_content.includes(thought) && finish === 'stop'
            && r.usage.total_tokens
               === r.usage.prompt_tokens + r.usage.completion_tokens) || r;
});

await check('a streamed chat', async () => {
    let content = '';
    let thoughts = '';
    const finish = [];
    for await (const part of await chat(ask, { stream: true })) {
        const { delta, finish_reason: f } = part.choices[0];
        if (part.usage) return 'usage unasked for';
        if (delta.reasoning_content && content) return 'a thought too late';
        content += delta.content ?? '';
        thoughts += delta.reasoning_content ?? '';
        if (f) finish.push(f);
    }
    return (content.includes(answer) && thoughts.includes(thought)
            && finish.join() === 'stop') || [content, thoughts, finish];
});

await check('the stream helper', async () => {
    const runner = client.chat.completions.stream({
        model: name, messages: [{ role: 'user', content: ask }], temperature: 0,
    });
    const final = await runner.finalChatCompletion();
    return final.choices[0].message.content.includes(answer) || final;
});

await check('usage with include_usage', async () => {
    const parts = await collect(await chat(ask, {
        stream: true, stream_options: { include_usage: true },
    }));
    const last = parts.pop();
    return (last.choices.length === 0 && last.usage.completion_tokens > 3
            && parts.every((p) => !p.usage)) || last;
});

await check('n=2', async () => {
    const r = await chat(ask, { n: 2 });
    return (r.choices.length === 2
            && r.choices.every((c) => c.message.content.includes(answer))) || r;
});

await check('logprobs', async () => {
    const r = await chat(ask, { logprobs: true, top_logprobs: 2 });
    const lp = r.choices[0].logprobs.content;
    return (lp.length > 0 && lp.every((x) => x.logprob <= 0
            && x.top_logprobs.length === 2)) || r.choices[0];
});

if (!mock) {
    await check('stop', async () => {
        const c = (await chat(ask, { stop: '632' })).choices[0];
        return (c.finish_reason === 'stop'
                && !(c.message.content ?? '').includes('632')) || c;
    });
}

await check('legacy completions', async () => {
    const prompt = mock ? 'mock tokens=3' : 'What is 1 + 1?';
    const r = await client.completions.create({ model: name, prompt,
                                                max_tokens: 8,
                                                temperature: 0 });
    return (r.object === 'text_completion' && r.choices[0].text !== '') || r;
});

await check('a wrong parameter is BadRequestError that names it', raises(
    OpenAI.BadRequestError, () => chat(ask, { temperature: 'hot' }),
    { status: 400, param: 'temperature', type: 'invalid_request_error' }));
await check('no messages is BadRequestError', raises(
    OpenAI.BadRequestError, () => client.chat.completions.create({
        model: name, messages: [] }), { param: 'messages' }));
await check('a prompt that is too long is BadRequestError', raises(
    OpenAI.BadRequestError,
    () => chat(mock ? 'mock error=context' : 'word '.repeat(100000)),
    { code: 'context_length_exceeded' }));

if (mock) {
    await check('a full engine is RateLimitError', raises(
        OpenAI.RateLimitError, () => chat('mock error=busy'), { status: 429 }));
    await check('a draining engine is status 503', raises(
        OpenAI.InternalServerError, () => chat('mock error=unavailable'),
        { status: 503 }));
    await check('an error inside a stream is an APIError', raises(
        OpenAI.APIError, async () => collect(await chat(
            'mock tokens=9 delay_ms=20 at=3 error=internal',
            { stream: true }))));
}

await check('a closed stream', async () => {
    const stream = await chat(long, { stream: true });
    let n = 0;
    for await (const part of stream) {
        if (part && ++n === 3) break;       // the client aborts its request
    }
});
