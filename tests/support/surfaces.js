/* What a page looks like and how it is reached; tests/support/surfaces.py asks. */
window.surfaces ??= (() => {
  const all = (what) => [...document.body.querySelectorAll(what)];
  const shown = (one) => one.checkVisibility({checkVisibilityCSS: true}) && one.getBoundingClientRect().width > 0;
  const called = (one) => `<${one.tagName.toLowerCase()} class="${one.getAttribute("class") || ""}"> ` +
    (one.getAttribute("aria-label") || one.textContent || "").trim().slice(0, 40);

  // colours: [r, g, b, alpha], the nearest background that is there, and WCAG's contrast of two
  const channels = (text) => { const found = text.match(/[\d.]+/g).map(Number); return found.length < 4 ? [...found, 1] : found; };
  const behind = (one) => {
    for (let up = one; up; up = up.parentElement) {
      const found = channels(getComputedStyle(up).backgroundColor);
      if (found[3] > 0.99) return found;
    }
    return [255, 255, 255, 1];
  };
  const light = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };

  return {
    sticksOut() {
      const scrolls = (one) => {
        for (let up = one.parentElement; up && up !== document.body; up = up.parentElement)
          if (/auto|scroll/.test(getComputedStyle(up).overflowX)) return true;
        return false;
      };
      const beyond = (one) => { const box = one.getBoundingClientRect(); return box.right > innerWidth + 1 || box.left < -1; };
      const waits = (one) => one.matches(".q-loading-bar"); // a bar that comes in from outside
      const found = all("*").filter((one) => shown(one) && beyond(one) && !scrolls(one) && !waits(one)).map(called);
      return document.documentElement.scrollWidth > innerWidth ? ["the page itself scrolls sideways", ...found] : found;
    },

    /* Texts whose contrast is less: of pictures by default. */
    pale(least, what = "svg text") {
      const drawn = (one) => one.closest("svg") ? [getComputedStyle(one).fill, one.closest("svg").parentElement] :
        [getComputedStyle(one).color, one];
      const found = all(what).filter((one) => shown(one) && one.textContent.trim() && (one.closest("svg") || !one.childElementCount));
      return found.map((one) => { const [ink, on] = drawn(one); return [one.textContent, contrast(channels(ink), behind(on))]; })
        .filter(([, found]) => found < least);
    },

    /* Numbers what can be worked with; returns what that is, and what invites a click and is none of it. */
    controls() {
      const found = all("a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex]")
        .filter((one) => one.tabIndex >= 0 && !one.disabled && shown(one));
      all("[data-stop]").forEach((one) => delete one.dataset.stop);
      found.forEach((one, at) => { one.dataset.stop = at; });
      const others = all("*").filter((one) => getComputedStyle(one).cursor === "pointer" && shown(one) &&
        !one.closest("[data-stop], label, [disabled], .disabled") && !one.querySelector("[data-stop]"));
      return [found.map(called), others.map(called)];
    },

    /* Where the focus is, and whether one sees it: an outline on it or near around it, that stands out. */
    focus(least) {
      const one = document.activeElement;
      const near = [one, one.parentElement, one.parentElement?.parentElement, one.closest("label, .q-field__control")];
      const seen = near.filter(Boolean).some((some) => {
        const style = getComputedStyle(some);
        return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 &&
          contrast(channels(style.outlineColor), behind(some.parentElement || some)) >= least;
      });
      return {stop: one.dataset.stop ?? null, seen};
    },

    /* Whatever is said, but what is marked as of another language, or to be left as it is. */
    texts() {
      const found = [document.title], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      const ours = (one) => !one.closest("script, style, [aria-hidden=true], [translate=no], [lang]:not(html)") && shown(one);
      while (walk.nextNode()) if (ours(walk.currentNode.parentElement)) found.push(walk.currentNode.data);
      for (const name of ["aria-label", "title", "placeholder", "alt"])
        found.push(...all(`[${name}]`).filter(ours).map((one) => one.getAttribute(name)));
      return found.map((text) => text.trim()).filter(Boolean);
    },
  };
})();
