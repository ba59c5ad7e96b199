"use strict";
// A play button and a slider over the steps of something that moves: the interpolation, the episode.

class Player {
  /**
   * @param {{button: HTMLButtonElement, slider: HTMLInputElement, name: string, rate: number, turns: boolean,
   *   onStep: (position: number) => void}} options `rate` in steps a second; `turns` goes back and forth
   *   instead of starting again
   */
  constructor({ button, slider, name, rate, turns, onStep }) {
    Object.assign(this, { button, slider, name, rate, turns, onStep, playing: false, direction: 1 });
    button.addEventListener("click", () => (this.playing ? this.stop() : this.play()));
    slider.addEventListener("input", () => {
      Player.current?.stop();
      onStep(this.position);
    });
    this.stop();
  }

  get position() {
    return Number(this.slider.value);
  }

  play() {
    Player.current?.stop(); // one at a time
    Player.current = this;
    this.playing = true;
    this.button.textContent = "Pause";
    let due = performance.now();
    const frame = (now) => {
      if (!this.playing) return;
      if (now >= due) {
        due = Math.max(due + 1000 / this.rate, now);
        this.step();
      }
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  step() {
    const last = Number(this.slider.max);
    let next = this.position + this.direction;
    if (next > last || next < 0) {
      if (this.turns) this.direction = -this.direction;
      next = this.turns ? this.position + this.direction : 0;
    }
    this.slider.value = next;
    this.onStep(next);
  }

  stop() {
    this.playing = false;
    this.button.textContent = this.name;
  }
}
