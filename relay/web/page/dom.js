// Helpers that create and update elements. Text is always text, never markup.

/** Creates an element: `make('p', { class: 'faint' }, 'text', child)`. Functions such as `onclick` are listeners. */
export function make(name, attributes = {}, ...children) {
  const svg = ['svg', 'polyline', 'line'].includes(name);
  const element = svg ? document.createElementNS('http://www.w3.org/2000/svg', name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === 'function') element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, '');
    else if (value !== false && value !== undefined && value !== null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Storage that lasts as long as this tab. If the browser forbids it, nothing is stored. */
export const tabStore = {
  get: (key) => whereAllowed(() => sessionStorage.getItem(key)),
  set: (key, value) => whereAllowed(() => sessionStorage.setItem(key, value)),
  remove: (key) => whereAllowed(() => sessionStorage.removeItem(key)),
};

function whereAllowed(work) {
  try {
    return work();
  } catch {
    return null;
  }
}

/** Sets text only if it changes, so that screen readers read changes only. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Like `say`, plus text that is hidden from screen readers, such as a countdown. */
export function sayAndShow(element, text, shown) {
  if (element.firstChild?.textContent !== text || element.childNodes.length !== 2) {
    element.replaceChildren(text, make('span', { 'aria-hidden': 'true' }));
  }
  say(element.lastChild, shown);
}

/** A list of names and values, and functions that set them: `[element, { name: set }]`. */
export function makeFacts(names) {
  const set = {};
  const list = make('dl', { class: 'facts' }, ...names.map((name) => {
    const value = make('dd', {}, '–');
    set[name] = (text) => say(value, text);
    return make('div', {}, make('dt', {}, name), value);
  }));
  return [list, set];
}

let fields = 0;
/** A label with its input or select. */
export function makeField(text, control) {
  control.id ||= `field-${fields += 1}`;
  return make('div', {}, make('label', { for: control.id }, text), control);
}

export function makeSelect(options, chosen, onChange) {
  return make('select', { onchange: (event) => onChange?.(event.target.value) }, ...options.map(
    ([value, text]) => make('option', { value, selected: value === chosen }, text),
  ));
}

const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit' });
const day = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'medium' });

export function makeTime(ms) {
  const date = new Date(ms);
  if (Number.isNaN(date.getTime())) return make('time', {}, 'unknown time'); // a sender may send any number
  const today = date.toDateString() === new Date().toDateString();
  return make('time', { datetime: date.toISOString() }, (today ? clock : day).format(date));
}

export const count = (value) => new Intl.NumberFormat(undefined, { maximumFractionDigits: value < 10 ? 1 : 0 }).format(value);
export const bits = (perSecond) => (perSecond < 1e6 ? `${count(perSecond / 1e3)} kbit/s` : `${count(perSecond / 1e6)} Mbit/s`);
export const duration = (ms) => (ms < 1000 ? `${Math.max(0, Math.round(ms))} ms` : `${count(ms / 1000)} s`);
