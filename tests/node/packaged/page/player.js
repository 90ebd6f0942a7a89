import { RelayPlayer } from 'relay-client/player';

const { url, token, stream } = JSON.parse(decodeURIComponent(location.hash.slice(1)));
RelayPlayer.getToken = () => token;
const player = Object.assign(document.createElement('relay-player'), { stream });
player.setAttribute('relay', url);
const shown = document.querySelector('output');
player.addEventListener('statechange', ({ detail }) => { shown.textContent = detail.state; });
document.body.append(player);
