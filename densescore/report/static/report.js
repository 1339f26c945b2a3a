
'use strict';
// All that comes from files or labels is put in as text.
const find = (selector) => document.querySelector(selector);
const read = (block) => JSON.parse(block.textContent);
const readable = (value) => (value >= 0.001 ? value.toPrecision(2) : value > 0 ? '< 0.001' : '0');
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
const colors = Uint8Array.from(atob(about.colors), (character) => character.charCodeAt(0));
const entries = [...document.querySelectorAll('script.facts')].map((block) => ({...read(block), block}));
const images = entries.filter((entry) => entry.error === undefined);
const failed = entries.filter((entry) => entry.error !== undefined);
const [chosen, confidence, peak, opacity, part] = ['#class', '#confidence', '#peak', '#opacity', '#name'].map(find);
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
  image.map = make('canvas', {ariaHidden: 'true'});
  image.marks = draw('svg', {viewBox: `0 0 ${image.width} ${image.height}`, preserveAspectRatio: 'none', 'aria-hidden': 'true'});
  image.card.querySelector('.picture').append(image.photo, image.map, image.marks);
  show(image);
}

function show(image) {
  const found = at(image, image.label);
  const buttons = image.classes.map((each) => {
    const button = make('button', {type: 'button', ariaPressed: String(each === found)}, `${each.label} `,
      make('span', {textContent: readable(each.confidence)}));
    button.addEventListener('click', () => {
      image.label = each.label;
      show(image);
      image.card.querySelector('[aria-pressed=true]').focus();
    });
    return button;
  });
  image.card.querySelector('.labels').replaceChildren(...buttons);
  image.photo.alt = found ? `${image.name}: ${found.label}, confidence ${readable(found.confidence)}` : image.name;
  mark(image, found);
  paint(image, found);
}

function mark(image, found) {
  const marks = (found?.boxes ?? []).filter((box) => box[4] >= peak.value)
    .map(([x, y, x1, y1]) => draw('rect', {x, y, width: x1 - x, height: y1 - y, 'vector-effect': 'non-scaling-stroke'}));
  if (found?.place) {
    const [x, y] = found.place;
    const arm = Math.max(image.width, image.height) / 40;
    marks.push(draw('path', {d: `M${x - arm} ${y}h${2 * arm}M${x} ${y - arm}v${2 * arm}`, 'vector-effect': 'non-scaling-stroke'}));
  }
  image.marks.replaceChildren(...marks);
}

// As `densescore heatmap` draws: turbo from 0 to the map's peak. Below 0.4 of the peak the photograph stays bare, and a peak
// below 0.05 is drawn fainter, so that a class that is not there does not shine.
async function paint(image, found) {
  const url = image.pictures.maps[image.classes.indexOf(found)];
  image.map.hidden = !url;
  if (!url) return;
  const picture = make('img', {src: url});
  await picture.decode();
  if (at(image, image.label) !== found) return; // another class was chosen meanwhile
  const {naturalWidth: width, naturalHeight: height} = picture;
  Object.assign(image.map, {width, height});
  const context = image.map.getContext('2d', {willReadFrequently: true});
  context.drawImage(picture, 0, 0);
  const pixels = context.getImageData(0, 0, width, height);
  let least = 255;
  for (let i = 0; i < pixels.data.length; i += 4) least = Math.min(least, pixels.data[i]);
  const floor = Math.max(0.4, least / 255);
  const strength = 255 * Math.min(1, Math.sqrt(found.peak / 0.05));
  for (let i = 0; i < pixels.data.length; i += 4) {
    const value = pixels.data[i];
    const rise = Math.max(0, (value / 255 - floor) / Math.max(1 - floor, 1e-12)) ** 0.8;
    pixels.data.set([...colors.subarray(3 * value, 3 * value + 3), strength * rise], i);
  }
  context.putImageData(pixels, 0, 0);
}

function say() {
  for (const slider of [confidence, peak, opacity]) slider.nextElementSibling.textContent = Number(slider.value).toFixed(2);
  find('#images').style.setProperty('--opacity', opacity.value);
}

images.forEach((image, index) => {
  const picture = make('div', {className: 'picture'});
  picture.style.aspectRatio = `${image.width} / ${image.height}`;
  image.card = make('li', {className: 'card'}, picture,
    make('p', {className: 'name', title: image.name, textContent: image.name.startsWith(folder) ? image.name.slice(folder.length) : image.name}),
    make('div', {className: 'labels'}));
  image.card.dataset.index = index;
  near.observe(image.card);
});
chosen.append(make('option', {value: '', textContent: 'the best one of each image'}),
  ...labels.map((label, index) => make('option', {value: index, textContent: `${label} (${counts.get(label).toLocaleString('en')})`})));
find('#about').textContent = about.text + (folder && folder !== '/' ? ` Images in ${folder}` : '');
find('#errors').hidden = !failed.length;
find('#errors summary').textContent = `${number(failed.length, 'image')} could not be shown`;
find('#errors ul').append(...failed.map(({name, error}) =>
  make('li', {textContent: error.includes(name) ? error : `${name}: ${error}`})));
find('#controls').addEventListener('submit', (event) => event.preventDefault());
find('#controls').addEventListener('input', (event) => {
  say();
  if (event.target === peak) for (const image of shown) mark(image, at(image, image.label));
  else if (event.target !== opacity) rank();
});
addEventListener('beforeprint', () => images.filter((image) => image.card.isConnected).forEach(fill));
say();
rank();
