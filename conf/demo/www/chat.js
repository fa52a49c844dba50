// chat.js - the chat page: the conversation, what the reader does with it, and
// how it is shown.  The model is api.js's, Markdown is markdown.js's.
//
// A turn is { question, text, thought, thought_ms, first_ms, per_s, n_tokens,
// problem, stopped, stream }: plain data, kept in localStorage; `view` of a
// shown turn is its elements, `stream` of one that is being answered where the
// rest is to be had.

import { chat, leave, modelName, Problem } from './api.js';
import { show } from './markdown.js';

const $ = (id) => document.getElementById(id);

const SAVE_MS = 1000;           // while an answer streams
const MODEL_RETRY_MS = 3000;    // while the server is away
const NEAR_END_PX = 80;         // the reader follows the answer

let turns = [];
let running = null;             // AbortController of the answer in progress,
                                // and the view that it is for
let model = '';


// -- what is kept ------------------------------------------------------------

function load(key, otherwise) {
    try {
        return JSON.parse(localStorage.getItem(`ngx_moe.${key}`)) ?? otherwise;
    } catch {
        return otherwise;
    }
}

function save(key, value) {
    try {
        localStorage.setItem(`ngx_moe.${key}`, JSON.stringify(value));
    } catch {
        // Storage is full or forbidden: the page works, it just forgets.
    }
}

// An answer that is still coming is kept as a stopped one: if the page goes
// away now, that is what it will be; unless the page can come back to it.
function saveTurns() {
    save('turns', turns.map(({ view, ...turn }) => (
        running !== null && running.view === view && turn.stream?.id === undefined
            ? { ...turn, stopped: true } : turn)));
}


// -- how a turn is shown -----------------------------------------------------

function seconds(ms) {
    return `${(ms / 1000).toFixed(1)} s`;
}

function figures(turn) {
    const out = [];
    if (turn.first_ms !== undefined) {
        out.push(`${seconds(turn.first_ms)} to first token`);
    }
    if (turn.per_s) out.push(`${turn.per_s.toFixed(turn.per_s < 10 ? 1 : 0)} tokens/s`);
    if (turn.n_tokens) {
        out.push(`${turn.n_tokens} token${turn.n_tokens === 1 ? '' : 's'}`);
    }
    if (turn.stopped) out.push('stopped');
    if (turn.cut) out.push('length limit reached');
    return out.join(' · ');
}

function buildTurn(turn) {
    const asked = $('asked').content.cloneNode(true).firstElementChild;
    const answer = $('answer').content.cloneNode(true).firstElementChild;
    asked.querySelector('p').textContent = turn.question;

    turn.view = {
        asked, answer,
        thought: answer.querySelector('.thought'),
        label: answer.querySelector('.thought span'),
        thinking: answer.querySelector('.thought div'),
        text: answer.querySelector('.text'),
        problem: answer.querySelector('.problem'),
        footer: answer.querySelector('footer'),
        figures: answer.querySelector('.figures'),
    };
    answer.querySelector('summary').addEventListener('click', () => {
        turn.view.chosen = true;        // the reader folds it, not the page
    });
    answer.querySelector('.copy').addEventListener('click', (e) => {
        copy(turn.text, e.currentTarget);
    });
    for (const b of answer.querySelectorAll('.again, .problem button')) {
        b.addEventListener('click', () => again(turn));
    }
    $('turns').append(asked, answer);
}

// Makes the elements say what the turn says.
function showTurn(turn) {
    const { view } = turn;
    const busy = running !== null && running.view === view;
    const thinking = busy && !turn.text;

    view.answer.classList.toggle('waiting', busy && !turn.text && !turn.thought);
    view.answer.classList.toggle('thinking', thinking && turn.thought !== '');
    view.answer.setAttribute('aria-busy', String(busy));

    view.thought.hidden = !turn.thought;
    if (!view.chosen) view.thought.open = thinking;
    view.label.textContent = thinking ? 'Thinking'
        : turn.thought_ms === undefined ? 'Thought'
        : `Thought for ${seconds(turn.thought_ms)}`;
    const old = view.thinking.textContent;
    if (turn.thought.startsWith(old)) {
        view.thinking.append(turn.thought.slice(old.length));
    } else {
        view.thinking.textContent = turn.thought;
    }

    show(view.text, turn.text);
    view.problem.hidden = !turn.problem;
    view.problem.querySelector('p').textContent = turn.problem || '';
    view.footer.hidden = busy ? !turn.n_tokens : !(turn.text || turn.thought);
    for (const b of view.footer.querySelectorAll('button')) b.hidden = busy;
    view.footer.querySelector('.copy').hidden ||= !turn.text;
    view.figures.textContent = figures(turn);
}

function showPage() {
    $('welcome').hidden = turns.length > 0;
    $('turns').hidden = turns.length === 0;
    $('send').hidden = running !== null;
    $('stop').hidden = running === null;
    $('send').disabled = !$('question').value.trim();
    document.title = turns.length ? `${turns[0].question.slice(0, 40)} · ngx_moe`
        : 'ngx_moe';
}

async function copy(text, button) {
    const use = button.querySelector('use');
    try {
        await navigator.clipboard.writeText(text);
    } catch {
        return;             // not a secure context: the text can be selected
    }
    use.setAttribute('href', '#i-done');
    announce('Copied');
    setTimeout(() => use.setAttribute('href', '#i-copy'), 1500);
}

function announce(text) {
    $('announce').textContent = text;
}


// -- following the end of the answer -----------------------------------------

function atEnd() {
    const s = $('scroll');
    return s.scrollHeight - s.scrollTop - s.clientHeight < NEAR_END_PX;
}

function toEnd() {
    $('scroll').scrollTop = $('scroll').scrollHeight;
}

function showToEnd() {
    $('to-end').hidden = atEnd();
}


// -- asking ------------------------------------------------------------------

function requestFor(turn) {
    const messages = [];
    for (const t of turns) {
        messages.push({ role: 'user', content: t.question });
        if (t === turn) break;
        if (t.text) messages.push({ role: 'assistant', content: t.text });
        else messages.pop();        // never answered: as if never asked
    }
    const think = $('think').checked;
    const request = {
        messages,
        // Templates call the same switch by two names.
        chat_template_kwargs: { enable_thinking: think, thinking: think },
    };
    if (model) request.model = model;
    const { temperature, max_tokens } = load('settings', {});
    if (temperature !== undefined) request.temperature = temperature;
    if (max_tokens !== undefined) request.max_tokens = max_tokens;
    return request;
}

// Takes one piece of the answer into the turn.
function take(turn, piece, clock) {
    const now = performance.now();
    if (piece.usage) {
        turn.n_tokens = piece.usage.completion_tokens;
    } else if (piece.finish) {
        turn.cut = piece.finish === 'length';
    } else {
        turn.n_tokens++;
        clock.first ??= now;
        clock.last = now;
        if (piece.reasoning) {
            turn.thought += piece.reasoning;
            clock.thought ??= now;
        } else {
            // Templates put blank lines between the thought and the answer.
            if (!turn.text) turn.text = piece.content.trimStart();
            else turn.text += piece.content;
        }
        if (clock.thought && !turn.text) turn.thought_ms = now - clock.thought;
        turn.first_ms = clock.first - clock.start;
    }
    const ms = clock.last - clock.first;
    if (turn.n_tokens > 1 && ms > 0) turn.per_s = (turn.n_tokens - 1) / ms * 1000;
}

// Shows what has come, once a frame at most.
function shower(turn) {
    let asked = false;
    const now = () => {
        const follow = atEnd();
        asked = false;
        showTurn(turn);
        if (follow) toEnd();
        showToEnd();
    };
    return () => {
        if (asked) return;
        asked = true;
        // A hidden page has no frames, but its title and storage go on.
        if (document.hidden) setTimeout(now, 250);
        else requestAnimationFrame(now);
    };
}

function answer(turn) {
    Object.assign(turn, { text: '', thought: '', n_tokens: 0, stream: {} });
    for (const k of ['thought_ms', 'first_ms', 'per_s', 'problem', 'stopped',
                     'cut']) delete turn[k];
    turn.view.chosen = false;
    return receive(turn);
}

// What its stream has to say, from the beginning or from where it was left.
async function receive(turn) {
    running = new AbortController();
    running.view = turn.view;
    const mine = running;
    const clock = { start: performance.now() };
    const refresh = shower(turn);
    let saved = clock.start;

    saveTurns();
    showPage();
    showTurn(turn);
    toEnd();
    try {
        for await (const piece of chat(requestFor(turn), mine.signal,
                                         turn.stream)) {
            take(turn, piece, clock);
            refresh();
            if (performance.now() - saved > SAVE_MS) {
                saved = performance.now();
                saveTurns();
            }
        }
        announce(turn.text);
    } catch (e) {
        if (mine.left) return;          // the page goes, the stream does not
        if (e.name === 'AbortError') {
            turn.stopped = true;
            leave(turn.stream);
        } else if (e instanceof Problem) turn.problem = e.message;
        else {
            turn.problem = 'The page does not understand the answer.';
            console.error(e);
        }
        if (turn.problem) findModel();
    } finally {
        if (running === mine) running = null;
        if (!mine.left) delete turn.stream;
        if (turns.includes(turn)) {
            saveTurns();
            refresh();
        }
        showPage();
    }
}

function ask(question) {
    if (running || !question.trim()) return;
    const turn = { question: question.trim(), text: '', thought: '' };
    turns.push(turn);
    buildTurn(turn);
    answer(turn);
}

// Answers a question again; what came after it is forgotten.
function again(turn) {
    if (running) return;
    const i = turns.indexOf(turn);
    for (const { view } of turns.splice(i + 1)) {
        view.asked.remove();
        view.answer.remove();
    }
    answer(turn);
}

// The page was left while an answer came, and is back.
function goOn() {
    const turn = turns.find((t) => t.stream?.id !== undefined);
    if (turn && !running) receive(turn);
}

function newChat() {
    if (running) running.abort();
    turns = [];
    saveTurns();
    $('turns').replaceChildren();
    showPage();
    showToEnd();
    $('question').focus();
}


// -- the model's name --------------------------------------------------------

let finding = null;

async function findModel() {
    clearTimeout(finding);
    try {
        model = await modelName();
        $('model').textContent = model;
        $('model').classList.remove('absent');
    } catch {
        $('model').textContent = 'no model: waiting for it';
        $('model').classList.add('absent');
        finding = setTimeout(findModel, MODEL_RETRY_MS);
    }
}


// -- settings ----------------------------------------------------------------

function openSettings() {
    const { temperature, max_tokens } = load('settings', {});
    $('temperature').value = temperature ?? '';
    $('max-tokens').value = max_tokens ?? '';
    $('settings').showModal();
}

function closeSettings() {
    const settings = {};
    const number = (input) => (input.value !== '' && input.validity.valid
        ? Number(input.value) : undefined);
    settings.temperature = number($('temperature'));
    settings.max_tokens = number($('max-tokens'));
    save('settings', settings);
}


// -- the reader --------------------------------------------------------------

function grow() {
    const q = $('question');
    q.style.height = 'auto';
    q.style.height = `${q.scrollHeight}px`;
    showPage();
}

function submit() {
    const q = $('question');
    if (running || !q.value.trim()) return;
    const text = q.value;
    q.value = '';
    grow();
    ask(text);
}

function keyDown(e) {
    // On a phone Enter is a new line, as in its other programs; while an input
    // method composes, Enter is its own.
    if (e.key !== 'Enter' || e.shiftKey || e.isComposing
        || matchMedia('(hover: none) and (pointer: coarse)').matches) return;
    e.preventDefault();
    submit();
}

$('composer').addEventListener('submit', (e) => { e.preventDefault(); submit(); });
$('question').addEventListener('keydown', keyDown);
$('question').addEventListener('input', grow);
$('stop').addEventListener('click', () => {
    running?.abort();
    $('question').focus();
});
$('new-chat').addEventListener('click', newChat);
$('to-end').addEventListener('click', toEnd);
$('scroll').addEventListener('scroll', showToEnd, { passive: true });
$('open-settings').addEventListener('click', openSettings);
$('settings').addEventListener('close', closeSettings);
$('think').addEventListener('change', () => save('think', $('think').checked));
$('examples').addEventListener('click', (e) => {
    if (e.target.matches('button')) ask(e.target.textContent);
});
// A browser may keep a page that was left, and what it loads, for the way back.
addEventListener('pagehide', () => {
    if (!running) return;
    running.left = turns.some((t) => t.view === running.view
                                     && t.stream?.id !== undefined);
    saveTurns();
    running.abort();
});
addEventListener('pageshow', (e) => {
    if (e.persisted) goOn();
});
document.addEventListener('keydown', (e) => {
    if (e.key === 'Escape' && running && !$('settings').open) running.abort();
});

$('think').checked = load('think', true);
turns = load('turns', []);
for (const turn of turns) {
    buildTurn(turn);
    showTurn(turn);
}
showPage();
toEnd();
findModel();
goOn();
$('question').focus();
