/* Clickwake's browser tracker. No dependency, Segment's calls:
 *   <script src="https://COLLECTOR/clickwake.js" data-write-key="KEY" async></script>
 *   clickwake.track("Product Viewed", {product_id: "85123A"}); clickwake.identify("u1", {plan: "pro"}); clickwake.page();
 * Calls made before the script has come: var clickwake = window.clickwake || []; clickwake.push(["track", "Product Viewed"]).
 *
 * An event is kept in localStorage until the collector has acknowledged it, or refused it for good. It is sent again under
 * the same messageId, so it counts once. When the page goes, what is left is handed to sendBeacon, and kept all the same. */
(function (window, document) {
  "use strict";
  var AT_ONCE = 50, KEPT_MAX = 500, WAIT_MS = 200, RETRY_MAX_MS = 60000, TOLD_MAX_MS = 3600000, SESSION_MS = 30 * 60000;
  var BATCH_BYTES = 450000; // the collector takes 500 KiB
  var BEACON_BYTES = 60000; // a browser gives 64 KiB to all that outlives the page
  var ADOPT_MS = 15000; // a queue that nobody has touched for so long is of a tab that is gone
  var CONSENT = "Segment Consent Preference Updated";
  var script = document.currentScript, early = window.clickwake;
  var options = {host: script ? new URL(script.src).origin : "", writeKey: "", consent: null};
  var tab = id(), sending = false, timer = 0, failures = 0, atOnce = AT_ONCE, waiters = [], memory = {}, heard = null;

  function id() {
    if (window.crypto && crypto.randomUUID) return crypto.randomUUID();
    return "xxxxxxxx-xxxx-4xxx-8xxx-xxxxxxxxxxxx".replace(/x/g, function () { return (Math.random() * 16 | 0).toString(16); });
  }
  // What storage does not take (private windows, blocked cookies, no room) is in memory, as long as the page.
  function read(name) {
    if (name in memory) return memory[name];
    try { return localStorage.getItem("clickwake." + name); } catch (e) { return null; }
  }
  function write(name, value) {
    try {
      if (value === null) localStorage.removeItem("clickwake." + name); else localStorage.setItem("clickwake." + name, value);
      delete memory[name];
    } catch (e) { memory[name] = value; }
  }
  function parse(text, otherwise) { try { return JSON.parse(text) || otherwise; } catch (e) { return otherwise; } }

  var queue = [];
  function keep() { write("queue." + tab, queue.length ? JSON.stringify({at: Date.now(), events: queue}) : null); }
  function adopt() { // what tabs that are gone have left
    try {
      Object.keys(localStorage).forEach(function (key) {
        var left = /^clickwake\.queue\./.test(key) && parse(localStorage.getItem(key), null);
        if (!left || key === "clickwake.queue." + tab || Date.now() - left.at < ADOPT_MS) return;
        localStorage.removeItem(key);
        queue = left.events.concat(queue);
      });
      keep();
    } catch (e) { /* no storage, nothing left */ }
  }

  function consented() { // what was said last, in whichever tab; until then what the page was loaded with
    var kept = read("consent");
    if (kept && kept !== heard) options.consent = parse(heard = kept, null);
    return options.consent;
  }
  function refused() { var c = consented(); return !!c && c.analytics === false && c.personalization === false; }
  function obey() { // of who has refused nothing that waits is sent, but that they have
    if (!refused()) return;
    queue = queue.filter(function (event) { return event.event === CONSENT; });
    keep();
  }
  function forget() { ["anonymousId", "userId", "session"].forEach(function (name) { write(name, null); }); }

  function anonymousId() { // of who has refused another each time
    var known = read("anonymousId");
    if (known) return known;
    known = id();
    if (!refused()) write("anonymousId", known);
    return known;
  }
  function sessionId() {
    var now = Date.now(), session = parse(read("session"), null);
    if (!session || now - session.seen > SESSION_MS) session = {id: id()};
    session.seen = now;
    write("session", JSON.stringify(session));
    return session.id;
  }

  function put(type, fields, more, always) { // more: {context, timestamp}, as Segment's last argument
    if (refused() && !always) return null;
    more = more || {};
    var event = {
      messageId: "b-" + id(), type: type, anonymousId: anonymousId(), originalTimestamp: new Date().toISOString(),
      context: {
        sessionId: sessionId(), locale: navigator.language, userAgent: navigator.userAgent,
        page: {url: location.href, path: location.pathname, title: document.title, referrer: document.referrer},
        library: {name: "clickwake.js", version: "1"}
      }
    };
    var user = read("userId");
    if (user) event.userId = user;
    Object.assign(event.context, more.context, consented() && {consent: options.consent});
    if (more.timestamp) event.originalTimestamp = new Date(more.timestamp).toISOString();
    for (var name in fields) if (fields[name] !== undefined) event[name] = fields[name];
    queue.push(JSON.parse(JSON.stringify(event))); // as it is now; what JSON has no form for is the caller's error
    if (queue.length > KEPT_MAX) queue.splice(0, queue.length - KEPT_MAX);
    keep();
    soon(WAIT_MS);
    return event.messageId;
  }

  function soon(ms) { if (!timer) timer = setTimeout(function () { timer = 0; send(); }, ms); }
  function cancel() { clearTimeout(timer); timer = 0; }
  function body(events) {
    return JSON.stringify({writeKey: options.writeKey, sentAt: new Date().toISOString(), batch: events});
  }
  function bytes(text) { return new Blob([text]).size; }
  function oldest(room) { // events that go into so many bytes; one in any case
    return queue.slice(0, atOnce).filter(function (event, n) {
      room -= bytes(JSON.stringify(event)) + 1;
      return !n || room >= 0;
    });
  }
  function settle() { if (!queue.length) { waiters.forEach(function (done) { done(); }); waiters = []; } }

  function send() {
    obey();
    if (sending || !queue.length || !options.writeKey) { settle(); return; }
    var events = oldest(BATCH_BYTES), text = body(events), sent = {};
    events.forEach(function (event) { sent[event.messageId] = true; });
    cancel(); // an hour's wait, if this was asked for earlier
    sending = true;
    fetch(options.host + "/v1/batch", {
      method: "POST", headers: {"Content-Type": "text/plain"}, body: text,
      keepalive: !failures && bytes(text) < BEACON_BYTES // others on the page may have taken the room
    }).then(function (answer) {
      return answer.text().then(function (said) {
        var status = answer.status, told = parse(said, {}), taken = answer.ok && told.success;
        if (status === 413 && events.length > 1) {
          atOnce = events.length >> 1;
          sent = {};
          return 0;
        }
        // Of what it refuses, all with a 400 or some with a 200, the collector keeps a dead letter that says why. An event
        // too large even alone is kept nowhere. Other answers (a key being changed, a proxy's page) say nothing of the events:
        // they wait.
        if (taken || status === 400 || status === 413) {
          atOnce = Math.min(AT_ONCE, 2 * atOnce);
          var refusal = !taken || (told.rejected || [])[0];
          if (refusal && window.console) console.warn("clickwake: events were refused", status, said);
          return 0;
        }
        return Math.min(TOLD_MAX_MS, 1000 * answer.headers.get("Retry-After") || 1);
      });
    }).catch(function () { return 1; }).then(function (again) {
      sending = false;
      if (again) {
        failures += 1;
        var wait = Math.min(RETRY_MAX_MS, 500 * Math.pow(2, failures));
        cancel(); // what was put meanwhile waits, too
        soon(Math.max(again, wait / 2 + Math.random() * wait / 2));
        return;
      }
      failures = 0;
      queue = queue.filter(function (event) { return !sent[event.messageId]; });
      keep();
      if (queue.length) soon(0); else settle();
    });
  }

  function leave() { // the page goes: whatever is left, as much as a beacon takes
    obey();
    if (!queue.length || !options.writeKey || !navigator.sendBeacon) return;
    navigator.sendBeacon(options.host + "/v1/batch", new Blob([body(oldest(BEACON_BYTES))], {type: "text/plain"}));
  }

  var api = {
    load: function (writeKey, more) {
      options.writeKey = writeKey;
      for (var name in more || {}) options[name] = more[name];
      if (options.consent) heard = read("consent");
      adopt();
      soon(0);
      return api;
    },
    track: function (event, properties, more) { return put("track", {event: event, properties: properties || {}}, more); },
    page: function (category, name, properties, more) { // category and name may be left out, the category first
      if (typeof name !== "string") { more = properties; properties = name; name = category; category = undefined; }
      if (typeof name === "object") { more = properties; properties = name; name = undefined; }
      var all = Object.assign({url: location.href, path: location.pathname}, category && {category: category}, properties);
      return put("page", {name: name, properties: all}, more);
    },
    identify: function (userId, traits, more) { // of nobody new: identify(traits)
      if (refused()) return null;
      if (typeof userId === "object") { more = traits; traits = userId; userId = undefined; }
      if (userId !== undefined) write("userId", userId = String(userId));
      return put("identify", {userId: userId, traits: traits || {}}, more);
    },
    group: function (groupId, traits, more) { return put("group", {groupId: groupId, traits: traits || {}}, more); },
    alias: function (userId, previousId) {
      if (refused()) return null;
      var before = previousId || read("userId") || anonymousId();
      write("userId", String(userId));
      return put("alias", {userId: String(userId), previousId: before});
    },
    consent: function (given) { // {analytics, personalization, ads}, kept; who refuses the first two is neither counted nor known
      var known = read("anonymousId") || read("userId"), before = read("consent");
      options.consent = given;
      write("consent", heard = JSON.stringify(given));
      if (before === heard || !known) return;
      put("track", {event: CONSENT, properties: {}}, null, true); // what is known of them goes by it
      if (!refused()) return;
      obey();
      forget();
      write("consent", heard); // into the room that is free now, if there was none
    },
    reset: forget, // somebody else uses this browser now; what waits is whose it was
    flush: function () { // a promise of the moment at which everything is acknowledged
      return new Promise(function (done) { waiters.push(done); send(); });
    },
    anonymousId: anonymousId,
    userId: function () { return read("userId"); },
    push: function (call) { return api[call[0]].apply(api, call.slice(1)); }
  };

  document.addEventListener("visibilitychange", function () { if (document.visibilityState === "hidden") leave(); });
  window.addEventListener("pagehide", leave);
  window.addEventListener("online", function () { failures = 0; send(); });
  window.clickwake = api;
  if (script && script.dataset.writeKey) api.load(script.dataset.writeKey);
  if (Array.isArray(early)) early.forEach(function (call) { api.push(call); });
})(window, document);
