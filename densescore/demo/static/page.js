// The page keeps the picture; the server keeps nothing. All that comes from files or labels is put in as text.
const find = (selector) => document.querySelector(selector);
const [upload, models, classes, stage, patches, found] =
  ['#upload', '#model', '#classes', '#stage', '#patches', '#found'].map(find);
const wanted = find('#wanted input');
const input = upload.querySelector('input');
const model = models.querySelector('select');
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

let photograph = null; // {data, name}
let asking = null; // ends the request that is under way

// The models are named before the first question: an upload may come sooner.
const named = fetch('models').then((response) => response.json()).then((names) => {
  model.replaceChildren(...names.map((name) => make('option', {value: name, textContent: name})));
  models.hidden = names.length < 2;
});

async function ask(path, picture, signal, options = {}) {
  await named;
  options = {model: model.value, classes: wanted.value, ...options};
  const query = new URLSearchParams(options);
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
  for (const part of [classes, stage, patches, found, find('#maps')]) part.hidden = true;
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
  if (!photograph) { asking?.abort(); say(''); busy(false); clear(); return; }
  await answer(show, 'view', (reason) => { clear(); say(`This could not be scored: ${reason}`); });
}

// Ask about the photograph, and show the answer unless another question came meanwhile.
async function answer(display, path, fail, options) {
  asking?.abort();
  say('');
  const request = asking = new AbortController();
  busy(true);
  try {
    const content = await (await ask(path, photograph, request.signal, options)).json();
    if (request !== asking) return;
    display(content);
  } catch (error) {
    if (request !== asking) return;
    fail(error.message);
  }
  busy(false);
}

function show(answer) {
  const legend = classes.querySelector('legend');
  const rows = answer.classes.map((each, number) => {
    const radio = make('input', {type: 'radio', name: 'class', checked: number === 0});
    radio.addEventListener('change', () => choose(each));
    return make('label', {className: each.picture ? '' : 'absent'}, radio, make('span', {textContent: each.title}),
      make('span', {className: 'answer', textContent: each.picture && each.answer || ''}));
  });
  classes.replaceChildren(legend, ...rows);
  stage.querySelector('.photo').src = answer.photo;
  box.hidden = found.hidden = true;
  for (const part of [classes, stage, find('#maps')]) part.hidden = false;
  choose(answer.classes[0]);
}

// The server draws; the slider blends its picture with the photograph.
function choose(shown) {
  const map = stage.querySelector('.map');
  map.src = shown.picture || stage.querySelector('.photo').src;
  map.alt = shown.title;
  stage.querySelector('.title').textContent = shown.title;
  stage.querySelector('.controls').hidden = !shown.picture;
  patches.hidden = !shown.patches.length;
  patches.querySelector('.items').replaceChildren(...shown.patches.map((src) => make('img', {src, alt: `a patch of ${shown.label}`})));
}

// A box drawn with the mouse or a finger, in shares of the picture's sides
const [picture, box] = ['.picture', '.box'].map((name) => stage.querySelector(name));
let corner = null;

function share(event) {
  const frame = picture.getBoundingClientRect();
  return [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height]
    .map((value) => Math.min(1, Math.max(0, value)));
}

function drawn(event) {
  const [x, y] = share(event);
  return [Math.min(x, corner[0]), Math.min(y, corner[1]), Math.max(x, corner[0]), Math.max(y, corner[1])];
}

function allowBoxes() {
  picture.classList.add('searchable');
  stage.querySelector('.hint').hidden = false;
  picture.addEventListener('pointerdown', (event) => {
    picture.setPointerCapture(event.pointerId);
    corner = share(event);
  });
  picture.addEventListener('pointermove', (event) => {
    if (!corner) return;
    const [x0, y0, x1, y1] = drawn(event).map((value) => 100 * value);
    box.hidden = false;
    Object.assign(box.style, {left: `${x0}%`, top: `${y0}%`, width: `${x1 - x0}%`, height: `${y1 - y0}%`});
  });
  picture.addEventListener('pointercancel', () => { corner = null; box.hidden = true; });
  picture.addEventListener('pointerup', (event) => {
    if (!corner) return;
    const sides = drawn(event);
    corner = null;
    if (Math.min(sides[2] - sides[0], sides[3] - sides[1]) < 0.01) { box.hidden = true; return; }  // a click
    const fail = (reason) => say(`Nothing could be searched for: ${reason}`);
    answer(showFound, 'find', fail, {box: sides.map((value) => value.toFixed(4)).join(',')});
  });
}

function showFound(places) {
  found.hidden = false;
  found.querySelector('.items').replaceChildren(...places.map(({name, similarity, picture: src}) => {
    const caption = make('figcaption', {textContent: `${similarity.toFixed(2)} ${name}`, title: name});
    return make('figure', {}, make('img', {src, alt: name}), caption);
  }));
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
    say(`The heatmaps could not be had: ${error.message}`);
  }
  button.disabled = false;
}

input.addEventListener('change', () => { if (input.files[0]) take(input.files[0], input.files[0].name); });
upload.querySelector('.clear').addEventListener('click', () => { input.value = ''; take(null); });
model.addEventListener('change', score);
wanted.addEventListener('change', score);
find('#maps').addEventListener('click', download);
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

await named;
if ((await (await fetch('index')).json()).images) allowBoxes();
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
