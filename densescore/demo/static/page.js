// The page keeps the picture; the server keeps nothing. All that comes from files or labels is put in as text.
const find = (selector) => document.querySelector(selector);
const [upload, models, classes, stage, patches] = ['#upload', '#model', '#classes', '#stage', '#patches'].map(find);
const wanted = find('#wanted input');
const input = upload.querySelector('input');
const model = models.querySelector('select');
const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const readable = (value) => (value >= 0.001 ? value.toPrecision(2) : value > 0 ? '< 0.001' : '0');
const percent = (share) => (share >= 0.005 || !share ? `${Math.round(share * 100)}%` : '< 1%');
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

let photograph = null; // {data, name}
let shown = null; // what the server said of it
let chosen = null; // the class whose map is drawn
let asking = null; // ends the request that is under way

async function ask(path, picture, signal) {
  const query = new URLSearchParams({model: model.value, classes: wanted.value});
  let response;
  try {
    response = await fetch(`${path}?${query}`, {method: 'POST', body: picture.data, signal,
      headers: {'Content-Type': 'application/octet-stream'}});
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Error('the server did not answer, or took no more of the file');
  }
  if (response.ok) return response;
  const text = await response.text();
  let reason = text || `error ${response.status}`;
  try { reason = JSON.parse(text).error; } catch { /* a proxy's own page */ }
  // The server knows the picture by its size only.
  throw new Error(reason.replace(/^image of \d+ bytes/, () => picture.name));
}

function say(text) {
  find('#message').hidden = !text;
  find('#message').textContent = text;
}

function busy(on) {
  document.body.classList.toggle('busy', on);
  find('#progress').hidden = !on;
}

function clear() {
  shown = chosen = null;
  for (const part of [classes, stage, patches, find('#maps')]) part.hidden = true;
}

function take(data, name) {
  photograph = data && {data, name};
  const thumbnail = upload.querySelector('.thumbnail');
  URL.revokeObjectURL(thumbnail.src);
  thumbnail.hidden = true;
  if (data) {
    thumbnail.onload = () => { thumbnail.hidden = false; };
    thumbnail.src = URL.createObjectURL(data);
  }
  upload.querySelector('.hint').hidden = Boolean(data);
  upload.querySelector('.name').hidden = upload.querySelector('.clear').hidden = !data;
  upload.querySelector('.name').textContent = name ?? '';
  score();
}

async function score() {
  asking?.abort();
  say('');
  if (!photograph) { busy(false); clear(); return; }
  const request = asking = new AbortController();
  busy(true);
  try {
    const answer = await (await ask('view', photograph, request.signal)).json();
    if (request !== asking) return;
    show(answer);
  } catch (error) {
    if (request !== asking) return;
    clear();
    say(`This could not be scored: ${error.message}`);
  }
  busy(false);
}

function show(answer) {
  shown = answer;
  const legend = classes.querySelector('legend');
  const rows = answer.classes.map((found, number) => {
    const radio = make('input', {type: 'radio', name: 'class', checked: number === 0});
    radio.addEventListener('change', () => draw(found));
    return make('label', {}, radio, make('span', {textContent: found.label}),
      make('span', {textContent: readable(found.confidence), title: `best patch ${readable(found.best_patch)}, score ${found.score.toPrecision(3)}`}));
  });
  classes.replaceChildren(legend, ...rows);
  stage.querySelector('.photo').src = answer.photo;
  for (const part of [classes, stage, patches, find('#maps')]) part.hidden = false;
  draw(answer.classes[0]);
}

// As `densescore heatmap` draws: turbo from 0 to the map's peak. Below 0.4 of the peak the photograph stays bare, and a peak
// below 0.05 is drawn fainter, so that a class that is not there does not shine.
function draw(found) {
  chosen = {...found, raw: new Float32Array(bytes(found.values).buffer)};
  const colors = bytes(shown.colors);
  const canvas = stage.querySelector('.map');
  canvas.width = shown.columns;
  canvas.height = shown.rows;
  const context = canvas.getContext('2d');
  const image = context.createImageData(shown.columns, shown.rows);
  const weights = new Float32Array(bytes(shown.weights).buffer);
  const drawn = chosen.raw.map((value, i) => value * weights[i]);
  const peak = Math.max(drawn.reduce((high, value) => Math.max(high, value), 0), 1e-12);
  const floor = Math.max(0.4 * peak, drawn.reduce((low, value) => Math.min(low, value), Infinity));
  const strength = 255 * Math.min(1, Math.sqrt(peak / 0.05));
  drawn.forEach((value, i) => {
    const c = Math.round(Math.min(value / peak, 1) * 255) * 3;
    const rise = Math.max(0, (value - floor) / Math.max(peak - floor, 1e-12)) ** 0.8;
    image.data.set([colors[c], colors[c + 1], colors[c + 2], strength * rise], 4 * i);
  });
  context.putImageData(image, 0, 0);
  canvas.style.opacity = stage.querySelector('.opacity').value;
  const bar = stage.querySelector('.bar').getContext('2d');
  for (let x = 0; x < 256; x++) {
    const c = x * 3;
    bar.fillStyle = `rgb(${colors[c]}, ${colors[c + 1]}, ${colors[c + 2]})`;
    bar.fillRect(x, 0, 1, 1);
  }
  stage.querySelector('.highest').textContent = peak.toPrecision(2);
  stage.querySelector('.reading').textContent = `${found.label}: peak ${found.peak.toPrecision(3)}`;
  patches.querySelector('.items').replaceChildren(...found.patches.map((patch) => make('figure', {},
    make('img', {src: patch.photo, alt: `a patch of ${found.label}`}),
    make('figcaption', {textContent: `${readable(patch.score)}, ${percent(patch.share)}`}))));
}

function read(event) {
  const box = stage.querySelector('.picture').getBoundingClientRect();
  const u = (event.clientX - box.left) / box.width, v = (event.clientY - box.top) / box.height;
  if (!chosen || u < 0 || v < 0 || u >= 1 || v >= 1) return;
  const value = chosen.raw[Math.floor(v * shown.rows) * shown.columns + Math.floor(u * shown.columns)];
  const x = Math.floor(u * shown.width), y = Math.floor(v * shown.height);
  stage.querySelector('.reading').textContent = `${chosen.label} at (${x}, ${y}): ${value.toPrecision(3)}`;
}

async function download() {
  const button = find('#maps');
  button.disabled = true;
  say('');
  try {
    const url = URL.createObjectURL(await (await ask('maps', photograph)).blob());
    make('a', {href: url, download: 'maps.npz'}).click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  } catch (error) {
    say(`The maps could not be had: ${error.message}`);
  }
  button.disabled = false;
}

input.addEventListener('change', () => { if (input.files[0]) take(input.files[0], input.files[0].name); });
upload.querySelector('.clear').addEventListener('click', () => { input.value = ''; take(null); });
model.addEventListener('change', score);
wanted.addEventListener('change', score);
find('#maps').addEventListener('click', download);
stage.querySelector('.picture').addEventListener('pointermove', read);
stage.querySelector('.picture').addEventListener('pointerdown', read);
stage.querySelector('.opacity').addEventListener('input', (event) => {
  stage.querySelector('.map').style.opacity = event.target.value;
});
document.addEventListener('dragover', (event) => { event.preventDefault(); document.body.classList.add('dragging'); });
document.addEventListener('dragleave', (event) => {
  if (!event.relatedTarget) document.body.classList.remove('dragging');
});
document.addEventListener('drop', (event) => {
  event.preventDefault();
  document.body.classList.remove('dragging');
  const file = event.dataTransfer.files[0];
  if (file) { input.value = ''; take(file, file.name); }
});

const names = await (await fetch('models')).json();
model.replaceChildren(...names.map((name) => make('option', {value: name, textContent: name})));
models.hidden = names.length < 2;
const examples = await (await fetch('examples')).json();
find('#examples').hidden = !examples.length;
find('#examples .items').replaceChildren(...examples.map(({name, photo}, number) => {
  const button = make('button', {type: 'button', className: 'gallery-item', title: name},
    make('img', {src: photo, alt: name}));
  button.addEventListener('click', async () => {
    const response = await fetch(`examples/${number}`);
    if (response.ok) { input.value = ''; take(await response.blob(), name); }
    else say(`${name} could not be had`);
  });
  return button;
}));
