// Search from disk. Browsers start no workers for pages that were opened from a file, so a hidden frame runs the search instead. The theme looks for
// the name IFrameWorker, and its offline plugin for the name of this file.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.appendChild(frame);
      const inside = frame.contentWindow;
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }));
      inside.importScripts = async (...addresses) => {
        for (const address of addresses) await this.load(inside.document, address);
      };
      this.load(inside.document, url).then(() => {
        this.inside = inside;
        this.waiting.forEach(data => this.postMessage(data));
      });
    }
    load(page, address) {
      return new Promise((resolve, reject) => {
        const script = page.createElement("script");
        Object.assign(script, { src: String(address), onload: resolve, onerror: reject });
        page.head.appendChild(script);
      });
    }
    postMessage(data) {
      if (this.inside) this.inside.dispatchEvent(new MessageEvent("message", { data }));
      else this.waiting.push(data);
    }
    terminate() {}
  };
}
