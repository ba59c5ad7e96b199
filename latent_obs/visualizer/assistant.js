"use strict";
// Gives work to worker.js and hands its results to the page.

class Assistant {
  constructor() {
    const parts = ["safetensors.js", "engine.js", "worker.js"];
    const text = parts.map((id) => document.getElementById(id).textContent).join("\n");
    const url = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
    this.worker = new Worker(url);
    this.waiting = new Map();
    this.asked = 0;
    this.worker.onmessage = ({ data: { id, result, error } }) => {
      const { resolve, reject } = this.waiting.get(id);
      this.waiting.delete(id);
      if (error === undefined) resolve(result);
      else reject(new Error(error));
    };
  }

  /** Have a job of worker.js done; a promise of its result. Jobs are done in the order of asking. */
  ask(job, given) {
    return new Promise((resolve, reject) => {
      this.waiting.set(++this.asked, { resolve, reject });
      this.worker.postMessage({ id: this.asked, job, ...given });
    });
  }
}
