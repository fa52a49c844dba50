// api.js - the model behind this page: OpenAI's chat completions over fetch.
// In: a request.  Out: its pieces, one by one, or a Problem.  A connection that
// is lost in the middle is made again, where the server keeps its streams
// (moe_resume).  Knows nothing of the page.

const BACK_MS = [0, 250, 1000, 2000, 4000, 8000];   // tries to come back

// What went wrong, in words for the reader.
export class Problem extends Error {}

function sentence(text) {
    return /[.!?]$/.test(text) ? text : `${text}.`;
}

async function problemOf(response) {
    let message = `The server answered with status ${response.status}.`;
    try {
        const body = await response.json();
        message = body.error.message || message;
    } catch {
        // Not an answer of ours: a proxy's page, or nothing.
    }
    const wait = Number(response.headers.get('Retry-After'));
    return new Problem(sentence(message)
                       + (wait ? ` Try again in ${wait} s.` : ''));
}

async function call(path, options) {
    let response;
    try {
        response = await fetch(path, options);
    } catch (e) {
        if (e.name === 'AbortError') throw e;
        throw new Problem('The server cannot be reached.');
    }
    if (!response.ok) throw await problemOf(response);
    return response;
}

export async function modelName() {
    const response = await call('v1/models');
    return (await response.json()).data[0].id;
}

// The id, if any, and the data of each server-sent event of a response's body.
async function* events(body) {
    const reader = body.getReader();
    const decoder = new TextDecoder();
    let text = '';

    try {
        for (;;) {
            let read;
            try {
                read = await reader.read();
            } catch (e) {
                if (e.name === 'AbortError') throw e;
                return;             // cut off: the caller misses [DONE]
            }
            if (read.done) return;
            text += decoder.decode(read.value, { stream: true });
            const parts = text.split(/\r?\n\r?\n/);
            text = parts.pop();
            for (const part of parts) {
                const lines = part.split(/\r?\n/);
                const field = (name) => lines
                    .filter((line) => line.startsWith(`${name}:`))
                    .map((line) => line.slice(name.length + 1).replace(/^ /, ''));
                const data = field('data');
                if (data.length) yield { id: field('id')[0], data: data.join('\n') };
            }
        }
    } finally {
        reader.cancel().catch(() => {});
    }
}

function ask(request, signal) {
    return call('v1/chat/completions', {
        method: 'POST',
        headers: { 'Content-Type': 'application/json' },
        body: JSON.stringify({
            ...request,
            stream: true,
            stream_options: { include_usage: true },
        }),
        signal,
    });
}

// The rest of a stream whose connection was lost; null: it is not to be had.
async function comeBack(stream, signal) {
    for (const ms of BACK_MS) {
        await new Promise((done) => { setTimeout(done, ms); });
        signal.throwIfAborted();
        try {
            const response = await fetch(`v1/streams/${stream.id}`, {
                headers: { 'Last-Event-ID': stream.last },
                signal,
            });
            if (response.status === 200) return response;
            if (response.status < 500) return null;
        } catch (e) {
            if (e.name === 'AbortError') throw e;
        }
    }
    return null;
}

// Nobody will come back for it.
export function leave(stream) {
    if (stream.id === undefined) return;
    fetch(`v1/streams/${stream.id}`, { method: 'DELETE', keepalive: true })
        .catch(() => {});
}

// Yields { reasoning } and { content } as they come, then { finish } and
// { usage }.  Throws a Problem, or AbortError when the signal says so.
// `stream` is written into: { id, last } say where one can come back to; with
// them the rest of that stream is what comes.
export async function* chat(request, signal, stream) {
    let response = stream.id === undefined ? await ask(request, signal)
        : await comeBack(stream, signal);

    while (response) {
        for await (const { id, data } of events(response.body)) {
            if (data === '[DONE]') return;
            const event = JSON.parse(data);
            if (event.error) throw new Problem(sentence(event.error.message));
            if (id !== undefined) Object.assign(stream, { id: event.id, last: id });
            if (event.usage) yield { usage: event.usage };
            const choice = event.choices && event.choices[0];
            if (!choice) continue;
            const { reasoning_content: reasoning, content } = choice.delta;
            if (reasoning) yield { reasoning };
            if (content) yield { content };
            if (choice.finish_reason) yield { finish: choice.finish_reason };
        }
        signal.throwIfAborted();
        response = stream.id === undefined ? null : await comeBack(stream, signal);
    }
    throw new Problem('The connection was lost before the answer was complete.');
}
