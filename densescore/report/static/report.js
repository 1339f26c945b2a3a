
'use strict';
// All that comes from files or labels is put in as text.
const find = (selector) => document.querySelector(selector);
const read = (block) => JSON.parse(block.textContent);
const number = (count, noun) => `${count.toLocaleString('en')} ${noun}${count === 1 ? '' : 's'}`;
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const draw = (tag, attributes) => {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};

const about = read(find('script.about'));
const entries = [...document.querySelectorAll('script.facts')].map((block) => ({...read(block), block}));
const images = entries.filter((entry) => entry.error === undefined);
const failed = entries.filter((entry) => entry.error !== undefined);
const [chosen, confidence, certain, opacity, part] = ['#class', '#confidence', '#certain', '#opacity', '#name'].map(find);
const shown = new Set(); // entries whose cards are filled

const counts = new Map();
for (const image of images) for (const {label} of image.classes) counts.set(label, (counts.get(label) ?? 0) + 1);
const labels = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a) || (a < b ? -1 : 1));
const folder = commonFolder(images.map(({name}) => name));
const at = (image, label) => image.classes.find((found) => found.label === label);
const wanted = () => labels[chosen.value]; // undefined: of each image its best class

// Names that are no valid text are in quotes, with escapes, and are shown whole.
function commonFolder(names) {
  const paths = names.filter((name) => !name.startsWith('"'));
  if (!paths.length) return '';
  let common = paths[0].slice(0, paths[0].lastIndexOf('/') + 1);
  while (!paths.every((name) => name.startsWith(common))) {
    const above = common.slice(0, -1);
    common = above.slice(0, above.lastIndexOf('/') + 1);
  }
  return common;
}

function rank() {
  const label = wanted();
  const text = part.value.toLowerCase();
  const ranked = images.map((image) => ({image, found: label === undefined ? image.classes[0] : at(image, label)}))
    .filter(({image, found}) => (found ? found.confidence >= confidence.value : label === undefined && confidence.value <= 0)
      && image.name.toLowerCase().includes(text))
    .sort((a, b) => (b.found?.confidence ?? -1) - (a.found?.confidence ?? -1));
  for (const {image, found} of ranked) {
    const same = image.label === found?.label;
    image.label = found?.label;
    if (shown.has(image) && !same) show(image); // a slider's every step would draw all maps again
  }
  find('#images').replaceChildren(...ranked.map(({image}) => image.card));
  find('#count').textContent = ranked.length ? `${number(ranked.length, 'image')} of ${images.length.toLocaleString('en')}, best first`
    : images.length ? 'No image is left: lower the confidence, or choose another class or name.' : 'There are no images.';
}

// A card is filled when it comes near the window.
const near = new IntersectionObserver((changes) => {
  for (const {isIntersecting, target} of changes) if (isIntersecting) fill(images[target.dataset.index]);
}, {rootMargin: '800px'});

function fill(image) {
  if (shown.has(image)) return;
  shown.add(image);
  image.pictures = read(image.block.nextElementSibling);
  image.photo = make('img', {src: image.pictures.photo, decoding: 'async'});
  image.map = make('img', {className: 'map', alt: ''});
  image.marks = draw('svg', {viewBox: `0 0 ${image.width} ${image.height}`, preserveAspectRatio: 'none', 'aria-hidden': 'true'});
  image.card.querySelector('.picture').append(image.photo, image.map, image.marks);
  show(image);
}

function show(image) {
  const found = at(image, image.label);
  const buttons = image.classes.map((each) => {
    const absent = !each.boxes.length && !each.place;
    const button = make('button', {type: 'button', className: absent ? 'absent' : '', ariaPressed: String(each === found)},
      each.title, make('span', {textContent: absent ? '' : each.answer ?? ''}));
    button.addEventListener('click', () => {
      image.label = each.label;
      show(image);
      image.card.querySelector('[aria-pressed=true]').focus();
    });
    return button;
  });
  image.card.querySelector('.labels').replaceChildren(...buttons);
  image.photo.alt = found ? `${image.name}: ${found.title}` : image.name;
  mark(image, found);
  const map = image.pictures.maps[image.classes.indexOf(found)];
  image.map.hidden = !map;
  if (map) image.map.src = map;
}

function mark(image, found) {
  const marks = (found?.boxes ?? []).filter((box) => box[4] === null || box[4] >= certain.value)
    .map(([x, y, x1, y1]) => draw('rect', {x, y, width: x1 - x, height: y1 - y, 'vector-effect': 'non-scaling-stroke'}));
  if (found?.place) {
    const [x, y] = found.place;
    const arm = Math.max(image.width, image.height) / 40;
    marks.push(draw('path', {d: `M${x - arm} ${y}h${2 * arm}M${x} ${y - arm}v${2 * arm}`, 'vector-effect': 'non-scaling-stroke'}));
  }
  image.marks.replaceChildren(...marks);
}

function say() {
  for (const slider of [confidence, certain, opacity]) slider.nextElementSibling.textContent = Number(slider.value).toFixed(2);
  find('#images').style.setProperty('--opacity', opacity.value);
}

images.forEach((image, index) => {
  const picture = make('button', {type: 'button', className: 'picture', ariaLabel: 'Enlarge, or back'});
  picture.addEventListener('click', () => image.card.classList.toggle('large'));
  picture.style.aspectRatio = `${image.width} / ${image.height}`;
  picture.style.setProperty('--aspect', image.width / image.height);
  image.card = make('li', {className: 'card'}, picture,
    make('p', {className: 'name', title: image.name, textContent: image.name.startsWith(folder) ? image.name.slice(folder.length) : image.name}),
    make('div', {className: 'labels'}));
  image.card.dataset.index = index;
  near.observe(image.card);
});
chosen.append(make('option', {value: '', textContent: 'the best one of each image'}),
  ...labels.map((label, index) => make('option', {value: index, textContent: `${label} (${counts.get(label).toLocaleString('en')})`})));
find('#about').textContent = about.text + (folder && folder !== '/' ? ` Images in ${folder}` : '');
// A control without anything to act on is hidden.
const drawn = images.flatMap((image) => image.classes);
certain.parentElement.hidden = !drawn.some(({boxes}) => boxes.some((box) => box[4] !== null));
opacity.parentElement.hidden = !drawn.some(({place}) => place);
find('#errors').hidden = !failed.length;
find('#errors summary').textContent = `${number(failed.length, 'image')} could not be shown`;
find('#errors ul').append(...failed.map(({name, error}) =>
  make('li', {textContent: error.includes(name) ? error : `${name}: ${error}`})));
find('#controls').addEventListener('submit', (event) => event.preventDefault());
find('#controls').addEventListener('input', (event) => {
  say();
  if (event.target === certain) for (const image of shown) mark(image, at(image, image.label));
  else if (event.target !== opacity) rank();
});
addEventListener('beforeprint', () => images.filter((image) => image.card.isConnected).forEach(fill));
say();
rank();
