/* The shop's page. Everything it shows comes from the read API, everything it tells goes through the tracker. */
"use strict";
const FIELDS = "title,brand,category,description,price";
const WITHIN_MS = 5000; // after which the page stops waiting for its own click to be known
const POLL_MS = 60;
const NAMES = {view: "looked at", click: "clicked", cart: "put into the cart", uncart: "took out", wish: "wished for",
  order: "bought", refund: "gave back", review: "reviewed", share: "shared", other: "did something with"};

const $ = (id) => document.getElementById(id);
const items = new Map(); // every item the page has heard of
const sent = []; // messageIds in their order: what is known after the third of them is known after the first two
const cart = new Map(JSON.parse(sessionStorage.getItem("cart") || "[]"));
let shown = null; // the recommendation on the page
let category = "", words = "";

function element(tag, fields = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(fields)) {
    if (name in made && name !== "style") made[name] = value; else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}
const hue = (text) => [...text].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 360, 7);
const money = (price) => (price === null || price === undefined ? "" : price.toLocaleString(undefined, {style: "currency", currency: "EUR"}));
const titleOf = (id) => items.get(id)?.title || id;
const quoted = (text) => JSON.stringify(text);

async function ask(path, parameters = {}) {
  const answer = await fetch(`/api/v1/${path}?${new URLSearchParams(parameters)}`);
  if (!answer.ok) return null;
  const found = await answer.json();
  for (const one of found.items || []) if (one.item?.title) items.set(one.item_id, one.item);
  return found;
}
const visitor = () => encodeURIComponent(clickwake.userId() || clickwake.anonymousId());
const recommendations = (parameters) => ask(`recommendations/${visitor()}`, {fields: FIELDS, ...parameters});

function reasonOf(one) {
  const first = one.reasons.find((reason) => reason.item_id && reason.item_id !== one.item_id);
  if (first) return `because of ${titleOf(first.item_id)}`;
  return {personal: "you know it", popularity: "popular now", trending: "rising", model: "your taste"}[one.source] || "";
}

function card(one, from) {
  const item = one.item || items.get(one.item_id) || {title: one.item_id};
  items.set(one.item_id, item);
  const open = element("button", {className: "open"},
    element("span", {className: "picture", "aria-hidden": "true", style: `--hue:${hue(item.category || one.item_id)};display:grid`}, (item.title || "?")[0]),
    element("span", {className: "text"}, element("span", {className: "title"}, item.title || one.item_id),
      element("span", {className: "price"}, money(item.price))));
  open.onclick = () => look(one.item_id, from);
  const why = from === "for_you" ? element("button", {className: "reason", title: "Why do I see this?"}, reasonOf(one)) : null;
  if (why) why.onclick = () => explain(one.item_id);
  return element("li", {"data-item": one.item_id}, element("div", {className: "card"}, open, why));
}

/* Tell, then show what it changed: the page asks until the answer knows of the event. */
async function tell(event, properties, from) {
  if (from && shown) properties.recommendation_id = shown.recommendation_id;
  const began = performance.now(), id = clickwake.track(event, properties);
  sent.push(id);
  await clickwake.flush();
  while (performance.now() - began < WITHIN_MS) {
    const answer = await recommendations({n: 10});
    if (answer && sent.indexOf(answer.as_of_event_id) >= sent.indexOf(id)) {
      await show(answer, performance.now() - began);
      return;
    }
    await new Promise((go) => setTimeout(go, POLL_MS));
  }
  $("freshness").textContent = "Your last click is not known yet; is everything running? See clickwake status.";
}

async function show(answer, tookMs) {
  const before = new Set([...$("for-you").children].map((one) => one.dataset.item));
  const missing = [...new Set(answer.items.flatMap((one) => one.reasons.map((reason) => reason.item_id)))]
    .filter((id) => id && !items.has(id));
  if (missing.length) await recommendations({n: 50, exclude: "none", category_cap: 50, filter: `item_id in [${missing.map(quoted)}]`});
  shown = answer;
  const cards = answer.items.map((one) => card(one, "for_you"));
  cards.forEach((one) => { if (before.size && !before.has(one.dataset.item)) one.classList.add("new"); });
  $("for-you").replaceChildren(...cards);
  const model = answer.model_version === "none" ? "live counts, no model yet" : `model ${answer.model_version}`;
  $("freshness").textContent = tookMs === undefined ? `By ${model}.`
    : `Changed ${Math.round(tookMs)} ms after your click, by ${model}.`;
  $("for-you").dataset.tookMs = tookMs === undefined ? "" : Math.round(tookMs);
  sent.push(clickwake.track("Product List Viewed", {list_id: "for-you", recommendation_id: answer.recommendation_id,
    products: answer.items.map((one, at) => ({product_id: one.item_id, position: at + 1}))}));
  known();
}

async function known() {
  const user = await ask(`users/${visitor()}`);
  const rows = user === null ? [["events", "none yet"]] : [
    ["events", user.events], ["orders", user.orders], ["spent", money(user.revenue)],
    ...(user.churn ? [["gone within " + user.churn.horizon_days + " days", Math.round(100 * user.churn.p_no_return) + "%"]] : []),
    ["as of", `${user.stale_ms} ms ago at most`]];
  $("known").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]));
  $("history").replaceChildren(...(user?.history || []).slice(0, 8).map((one) => element("li", {},
    `${NAMES[one.did]} ${titleOf(one.item_id)} `, element("small", {}, new Date(one.at).toLocaleTimeString()))));
}

async function shelf() {
  const filter = [category && `category == ${quoted(category)}`, words && `contains(title, ${quoted(words)})`].filter(Boolean);
  const parameters = {n: 24, scenario: words ? "for_you" : "popular", exclude: "none", category_cap: category ? 100 : 6};
  if (filter.length) parameters.filter = filter.join(" and ");
  const answer = await recommendations(parameters);
  $("shelf-title").textContent = words ? `“${words}”, in your order` : category ? `Popular in ${category}` : "Popular now";
  $("shelf").replaceChildren(...(answer?.items || []).map((one) => card(one)));
  if (!answer?.items.length) $("shelf").replaceChildren(element("li", {}, words ? "Nothing is called so." : "Nothing here yet."));
  return answer;
}

function categories(answer) {
  const names = [...new Set((answer?.items || []).map((one) => one.item?.category).filter(Boolean))].sort().slice(0, 14);
  $("categories").replaceChildren(...["", ...names].map((name) => {
    const button = element("button", {}, name || "All");
    button.setAttribute("aria-pressed", String(name === category));
    button.onclick = async () => { category = name; words = $("words").value = ""; categories(answer); await shelf();
      if (name) tell("Product List Viewed", {category: name}); };
    return button;
  }));
}

function dialog(id, title, ...content) {
  const box = $(id), close = element("button", {}, "Close");
  close.onclick = () => box.close();
  box.replaceChildren(element("div", {className: "top"}, element("h2", {id: `${id}-title`}, title), close), ...content);
  if (!box.open) box.showModal();
}

async function section(title, parameters) {
  const answer = await recommendations(parameters);
  if (!answer?.items.length) return null;
  return element("section", {}, element("h2", {}, title), element("ul", {className: "row"}, ...answer.items.map((one) => card(one))));
}

async function look(id, from) {
  const item = items.get(id) || {title: id}, told = tell("Product Viewed", {product_id: id, price: item.price, name: item.title}, from);
  const add = element("button", {className: "main"}, "Put into the cart");
  add.onclick = () => { cart.set(id, (cart.get(id) || 0) + 1); counted(); $("product").close();
    tell("Product Added", {product_id: id, price: item.price, quantity: 1}, from); };
  dialog("product", item.title, element("p", {}, [item.brand, item.category].filter(Boolean).join(" · ")),
    element("p", {}, item.description || ""), element("p", {}, element("b", {}, money(item.price))), add);
  const more = [await section("Like this", {scenario: "similar", items: id, n: 8}),
    await section("Goes with it", {scenario: "complements", items: id, n: 8})];
  if ($("product").open) $("product").append(...more.filter(Boolean));
  await told;
}

async function explain(id) {
  const why = await ask(`why/${visitor()}/${encodeURIComponent(id)}`);
  if (!why) return;
  const bars = Object.entries(why.shares).filter(([, share]) => share > 0.005).sort((a, b) => b[1] - a[1]).map(([name, share]) =>
    element("div", {className: "bar"}, element("span", {}, name), element("i", {style: `--share:${share}`}), element("span", {}, Math.round(100 * share) + "%")));
  const events = why.reasons.map((reason) => element("li", {}, `${Math.round(100 * reason.share)}% because of ${titleOf(reason.item_id)}`));
  dialog("product", `Why ${titleOf(id)}?`, element("p", {}, why.place ? `Place ${why.place} of ${why.of_items}, ${why.lift.toFixed(0)} times the score of the average item.` : why.removed_by.join("; ")),
    ...bars, element("h2", {}, "What you did that speaks for it"), element("ol", {}, ...events));
}

function counted() {
  sessionStorage.setItem("cart", JSON.stringify([...cart]));
  $("cart-count").textContent = [...cart.values()].reduce((sum, count) => sum + count, 0);
}

async function showCart() {
  const lines = [...cart].map(([id, count]) => {
    const out = element("button", {className: "quiet"}, "Remove");
    out.onclick = () => { cart.delete(id); counted(); showCart(); tell("Product Removed", {product_id: id}); };
    return element("li", {}, `${count} × ${titleOf(id)} `, element("small", {}, money(items.get(id)?.price)), " ", out);
  });
  const buy = element("button", {className: "main", disabled: !cart.size}, "Buy");
  buy.onclick = () => {
    const products = [...cart].map(([id, quantity]) => ({product_id: id, quantity, price: items.get(id)?.price ?? 0}));
    cart.clear(); counted(); $("cart").close();
    tell("Order Completed", {order_id: "o-" + Date.now(), products}, "for_you");
  };
  dialog("cart", "Your cart", element("ol", {}, ...(lines.length ? lines : [element("li", {}, "Nothing in it yet.")])), buy);
  const more = cart.size ? await section("Goes with your cart", {scenario: "complements", items: [...cart.keys()].join(","), n: 8}) : null;
  if (more && $("cart").open) $("cart").append(more);
}

$("search").onsubmit = (event) => {
  event.preventDefault();
  words = $("words").value.trim(); category = "";
  shelf();
  if (words) tell("Products Searched", {query: words});
};
$("cart-button").onclick = showCart;
$("nobody").onclick = () => { clickwake.reset(); sessionStorage.clear(); location.reload(); };

(async () => {
  counted();
  clickwake.page("shop");
  const first = await recommendations({n: 10});
  if (!first) {
    $("freshness").textContent = "The read API does not answer yet; is everything running? See clickwake status.";
    return;
  }
  await show(first);
  await shelf();
  categories(await ask(`recommendations/${visitor()}`, {n: 100, scenario: "popular", exclude: "none", category_cap: 100, fields: "category"}));
})();
