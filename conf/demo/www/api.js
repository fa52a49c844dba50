// api.js - the model behind this page: OpenAI's chat completions over fetch.
// In: a request.  Out: its pieces, one by one, or a Problem.  Knows nothing of
// the page.

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

// The data of each server-sent event of a response's body.
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
                const data = part.split(/\r?\n/)
                    .filter((line) => line.startsWith('data:'))
                    .map((line) => line.slice(5).replace(/^ /, ''));
                if (data.length) yield data.join('\n');
            }
        }
    } finally {
        reader.cancel().catch(() => {});
    }
}

// Yields { reasoning } and { content } as they come, then { finish } and
// { usage }.  Throws a Problem, or AbortError when the signal says so.
export async function* chat(request, signal) {
    const response = await call('v1/chat/completions', {
        method: 'POST',
        headers: { 'Content-Type': 'application/json' },
        body: JSON.stringify({
            ...request,
            stream: true,
            stream_options: { include_usage: true },
        }),
        signal,
    });

    for await (const data of events(response.body)) {
        if (data === '[DONE]') return;
        const event = JSON.parse(data);
        if (event.error) throw new Problem(sentence(event.error.message));
        if (event.usage) yield { usage: event.usage };
        const choice = event.choices && event.choices[0];
        if (!choice) continue;
        const { reasoning_content: reasoning, content } = choice.delta;
        if (reasoning) yield { reasoning };
        if (content) yield { content };
        if (choice.finish_reason) yield { finish: choice.finish_reason };
    }
    throw new Problem('The connection was lost before the answer was complete.');
}
